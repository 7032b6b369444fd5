"""Truth: the indices that went in, the distances by loops in float64, and closed forms on the sphere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import hyp0f1
from small_loop import SAMPLES, build, only, record, training
from stabilitylab_probes.alignment import alignment, uniformity
from torch import Tensor, nn
from torch.nn.functional import normalize

from stabilitylab import Recorder, Run
from stabilitylab.training.batches import batches
from stabilitylab.training.config import resolve
from stabilitylab.training.data import Data, open_dataset
from stabilitylab.training.distributed import process_group
from stabilitylab.training.loop import prepare, train

# ---- which samples


def with_outputs(path: Path, name: str, steps: list[dict[str, Any]], **parameters: Any) -> Run:
    with Recorder(path, nn.Linear(2, 2), probes=only(name, **parameters), flush_steps=2) as recorder:
        for outputs in steps:
            recorder.step(outputs=outputs)
    return Run(path)


def test_the_indices_of_every_step_stay_integers(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(2**40, (5,), generator=generator) for _ in range(7)]
    frame = with_outputs(tmp_path / "r", "batch", [{"indices": each} for each in batches])["batch.indices"]
    assert list(frame.columns) == ["0", "1", "2", "3", "4"]
    assert set(frame.dtypes) == {np.dtype("int64")}
    np.testing.assert_array_equal(frame, torch.stack(batches))


def test_batches_of_other_widths(tmp_path: Path) -> None:
    batches = [[7, 8], [9], [1, 2, 3, 4], [], [5, 6]]
    steps = [{"indices": torch.tensor(each, dtype=torch.int32)} for each in batches]
    frame = with_outputs(tmp_path / "r", "batch", steps)["batch.indices"]
    nan = np.nan  # what was not there yet
    expected = [[7, 8, nan, nan], [9, -1, nan, nan], [1, 2, 3, 4], [-1, -1, -1, -1], [5, 6, -1, -1]]
    assert list(frame.columns) == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(frame, expected)


def test_a_tensor_that_the_loop_uses_again_is_copied(tmp_path: Path) -> None:
    indices = torch.zeros(3, dtype=torch.int64)
    with Recorder(tmp_path / "r", nn.Linear(2, 2), probes=only("batch")) as recorder:
        for step in range(4):
            indices.fill_(step)
            recorder.step(outputs={"indices": indices})
    np.testing.assert_array_equal(Run(tmp_path / "r")["batch.indices"]["2"], [0, 1, 2, 3])


def test_a_loop_that_gives_no_indices_or_pairs_records_none(tmp_path: Path) -> None:
    with Recorder(tmp_path / "r", nn.Linear(2, 2)) as recorder:
        recorder.step()
        recorder.step(outputs={"projection": torch.ones(3, 2)})
    run = Run(tmp_path / "r")
    assert not {"batch.indices", "alignment.alignment", "alignment.uniformity"} & set(run.series)
    assert run.header["disabled"] == {}


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        (torch.zeros(3), "torch.float32 of shape (3,) was given"),
        (torch.zeros(3, dtype=torch.bool), "torch.bool of shape (3,) was given"),
        (torch.zeros(3, 1, dtype=torch.int64), "torch.int64 of shape (3, 1) was given"),
        (torch.tensor(1), "torch.int64 of shape () was given"),
    ],
)
def test_what_is_no_list_of_indices_is_named(tmp_path: Path, indices: Tensor, said: str) -> None:
    with pytest.warns(UserWarning, match="'batch' failed at step 0") as told:
        with_outputs(tmp_path / "r", "batch", [{"indices": indices}])
    assert said in str(told[0].message)


def test_a_resumed_recording_keeps_its_columns(tmp_path: Path) -> None:
    first = Recorder(tmp_path / "r", nn.Linear(2, 2), probes=only("batch"))
    first.step(outputs={"indices": torch.arange(3)})
    state = first.state()
    first.close()
    with Recorder(tmp_path / "r", nn.Linear(2, 2), probes=only("batch"), first_step=1) as second:
        second.load_state(state)
        second.step(outputs={"indices": torch.arange(2)})
    np.testing.assert_array_equal(Run(tmp_path / "r")["batch.indices"], [[0, 1, 2], [0, 1, -1]])


class Silent:
    def step(self, step: int, numbers: Any) -> None:
        pass


def test_the_images_of_a_training_are_found_again(tmp_path: Path) -> None:
    settings = {"data.batch_size": 40, "model.dim": 16, "model.depth": 1, "method.hidden": 16, "method.dim": 8}
    settings |= {"train.steps": 4, "schedule.warmup_steps": 1, "checkpoint.every": 0, "train.device": "cpu"}
    config = resolve("digits", settings)
    with process_group("cpu") as ranks:
        setup = prepare(config, open_dataset(config.data), ranks)
        train(setup, tmp_path / "r", Silent())
    run = Run(tmp_path / "r")
    truth = list(batches(setup.data, config.augment, seed=config.train.seed, steps=4))
    np.testing.assert_array_equal(run["batch.indices"], torch.stack([each.indices for each in truth]))
    images = open_dataset(Data(**run.config["data"])).train  # as the probe's docstring says
    assert images.pixels is not None
    assert images.labels is not None
    row = run["batch.indices"].loc[3].to_list()
    assert images.pixels[row].shape == (40, 1, 8, 8)
    torch.testing.assert_close(images.labels[row], truth[3].labels)
    assert list(run["alignment.alignment"].index) == [0]


# ---- alignment and uniformity


def on_sphere(samples: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(samples, dim, generator=generator, dtype=torch.float64), dim=1)


def slow_alignment(x: Tensor, y: Tensor) -> float:
    return sum(float(((a - b) ** 2).sum()) for a, b in zip(x, y, strict=True)) / len(x)


def slow_uniformity(x: Tensor) -> float:
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    return float(np.log(np.mean([np.exp(-2 * float(((x[i] - x[j]) ** 2).sum())) for i, j in pairs])))


def test_both_by_their_definitions_in_a_recording(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randn(2, 12, 5, generator=generator) * size for size in (1.0, 1e-4, 1e4)]
    steps = [{"projection": each[0], "positive": each[1]} for each in pairs]
    run = with_outputs(tmp_path / "r", "alignment", steps, every=1, rows=9)
    for step, both in enumerate(pairs):
        x, y = (each[:9].double() / each[:9].double().norm(dim=1, keepdim=True) for each in both)
        assert run["alignment.alignment"].loc[step, "pairs"] == pytest.approx(slow_alignment(x, y), rel=1e-12)
        row = run["alignment.uniformity"].loc[step]
        assert row["projection"] == pytest.approx(slow_uniformity(x), rel=1e-12)
        assert row["positive"] == pytest.approx(slow_uniformity(y), rel=1e-12)


@pytest.mark.parametrize("dim", [2, 3, 16, 256])
def test_evenly_on_the_sphere(dim: int) -> None:
    x, y = on_sphere(4000, dim), on_sphere(4000, dim, seed=1)
    # the mean of exp(4 cos) over directions is 0F1(; D / 2; 4), and that of the distance 2; the tolerance is 5 sigma
    assert float(uniformity(x)) == pytest.approx(np.log(hyp0f1(dim / 2, 4)) - 4, abs=0.01)
    assert float(alignment(x, y)) == pytest.approx(2, abs=5 * 2 / np.sqrt(dim * 4000))


def test_all_equal_and_two_opposite() -> None:
    x = on_sphere(1, 7).expand(30, 7)
    assert float(uniformity(x)) == pytest.approx(0, abs=1e-12)
    assert float(alignment(x, x)) == 0
    assert float(alignment(x, -x)) == pytest.approx(4, rel=1e-12)
    assert float(uniformity(torch.stack([x[0], -x[0]]))) == pytest.approx(-8, rel=1e-12)


def test_neither_turning_nor_scaling_nor_the_order_matters(tmp_path: Path) -> None:
    x, y = on_sphere(20, 6), on_sphere(20, 6, seed=1)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    steps = [{"projection": x, "positive": y}, {"projection": 3 * (x @ turn)[order], "positive": (y @ turn)[order] / 7}]
    run = with_outputs(tmp_path / "r", "alignment", steps, every=1)
    for series in ("alignment.alignment", "alignment.uniformity"):
        np.testing.assert_allclose(run[series].loc[1], run[series].loc[0], rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_compared_in_float64(tmp_path: Path, dtype: torch.dtype) -> None:
    x, y = on_sphere(10, 4).to(dtype), on_sphere(10, 4, seed=1).to(dtype)
    run = with_outputs(tmp_path / "r", "alignment", [{"projection": x, "positive": y}])
    x, y = (each.double() / each.double().norm(dim=1, keepdim=True) for each in (x, y))
    assert run["alignment.alignment"].iloc[0, 0] == pytest.approx(slow_alignment(x, y), rel=1e-12)
    assert run["alignment.uniformity"].iloc[0, 1] == pytest.approx(slow_uniformity(y), rel=1e-12)


def test_one_pair_has_an_alignment_only_and_nan_stays(tmp_path: Path) -> None:
    x, broken = on_sphere(1, 4), torch.full((3, 4), float("nan"))
    steps = [{"projection": x, "positive": x}, {"projection": broken, "positive": torch.ones(3, 4)}]
    run = with_outputs(tmp_path / "r", "alignment", steps, every=1)
    assert run["alignment.alignment"].loc[0, "pairs"] == 0
    assert run["alignment.uniformity"].loc[0].isna().all()
    assert run["alignment.alignment"].loc[1].isna().all()
    assert run["alignment.uniformity"].loc[1].isna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.ones(3, 2), torch.ones(4, 2)),
        (torch.ones(3, 2), torch.ones(3, 5)),
        (torch.ones(3, 2, 2), torch.ones(3, 2, 2)),
        (torch.ones(3, 2, dtype=torch.complex64), torch.ones(3, 2)),
        (torch.ones(3, 2), torch.ones(3, 2, dtype=torch.int64)),
    ],
)
def test_what_are_no_pairs_is_named(tmp_path: Path, x: Tensor, y: Tensor) -> None:
    with pytest.warns(UserWarning, match=r"'alignment' failed at step 0 .* of one shape \(N, D\), not complex"):
        with_outputs(tmp_path / "r", "alignment", [{"projection": x, "positive": y}])


def test_the_small_loop_gives_both(tmp_path: Path) -> None:
    run = record(tmp_path / "r", 12, only("alignment"))
    model, optimizer = build()
    step = next(training(model, optimizer, 0, 1))
    x, y = (normalize(step["outputs"][name].detach().double(), dim=1) for name in ("projection", "positive"))
    assert len(x) == SAMPLES
    assert list(run["alignment.alignment"].index) == [0, 10]
    assert run["alignment.alignment"].iloc[0, 0] == pytest.approx(slow_alignment(x, y), abs=1e-12)
    assert run["alignment.uniformity"].iloc[0, 0] == pytest.approx(slow_uniformity(x), rel=1e-9)
