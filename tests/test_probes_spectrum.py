"""Truth: numpy's SVD of the features, closed forms of clouds that are made with a known spectrum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_loop import build, data, held_out, only, record
from torch import Tensor, nn

from stabilitylab import HeldOut, InputError, Recorder, Run, plugins
from stabilitylab.detectors.collapse import Detector
from stabilitylab.probe import Step
from stabilitylab.stats import spectrum as truth
from stabilitylab.target import make_target

MEASURES = ("rank", "rankme", "participation_ratio", "stable_rank", "alpha_req", "feature_std")
SAMPLES = 400


def svd(features: np.ndarray) -> dict[str, Any]:
    """The variances and all measures of features (N, D), by numpy's SVD in float64."""
    samples, dimensions = features.shape
    values = features.astype(np.float64)
    variances = np.zeros(dimensions)
    singular = np.linalg.svd(values - values.mean(axis=0), compute_uv=False)
    variances[: len(singular)] = singular**2 / (samples - 1)
    return {
        "variances": variances,
        "rank": truth.effective_rank(variances),
        "rankme": truth.rankme(np.linalg.svd(values, compute_uv=False)),
        "participation_ratio": truth.participation_ratio(variances),
        "stable_rank": truth.stable_rank(variances),
        "alpha_req": truth.alpha_req(variances),
        "feature_std": truth.feature_std(values),
    }


def measured(features: Tensor | Mapping[str, Tensor], **parameters: Any) -> dict[str, dict[str, float]]:
    """What the probe says of features that are given; the fixed images are their row numbers."""
    named = features if isinstance(features, Mapping) else {"representation": features}
    rows = torch.arange(len(next(iter(named.values())))).reshape(-1, 1)

    def encode(images: Tensor) -> dict[str, Tensor]:
        return {name: each[images[:, 0]] for name, each in named.items()}

    fixed = HeldOut(rows[:100], None, rows[100:], None, encode, chunk=64)
    target = make_target(nn.Linear(2, 2), held_out=fixed)
    kind = plugins.load("probes", "spectrum")
    probe = kind(kind.Parameters(**parameters), target)
    found = probe.measure(Step(0, target))
    assert set(found) == set(probe.labels) == set(probe.about)
    return {series: dict(zip(probe.labels[series], found[series].tolist(), strict=True)) for series in found}


def cloud(deviations: Any, samples: int = SAMPLES, mean: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    scale = torch.as_tensor(deviations, dtype=torch.float64)
    return torch.randn(samples, len(scale), generator=generator, dtype=torch.float64) * scale + mean


# ---- against numpy


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("dimensions", "mean"), [(20, 0.0), (128, 3.0), (600, 0.5), (400, 0.0), (1, 1.0), (2, 0.0)])
def test_all_measures_equal_those_of_numpys_svd(dimensions: int, mean: float, dtype: torch.dtype) -> None:
    features = cloud(np.arange(1, dimensions + 1) ** -0.5, mean=mean).to(dtype)
    found, expected = measured(features), svd(features.double().numpy())
    # a Gram matrix holds a singular value to within the root of the precision of float64
    np.testing.assert_allclose(
        list(found["spectrum.representation"].values()), expected["variances"], rtol=1e-6, atol=1e-13
    )
    for name in MEASURES:
        np.testing.assert_allclose(
            found[f"spectrum.{name}"]["representation"], expected[name], rtol=1e-6, atol=1e-12, err_msg=name
        )


def test_in_a_training_every_tap_equals_numpys_svd_of_what_the_model_gives(tmp_path: Path) -> None:
    model, optimizer = build()
    model.eval()
    given = held_out(model)
    images = torch.cat([data(2)[0], data(3)[0]])
    with torch.no_grad():
        assert given.encode_momentum is not None
        features = {**given.encode(images), **given.encode_momentum(images)}
    model.train()
    with Recorder(tmp_path / "r", model, optimizer, probes=only("spectrum"), held_out=held_out(model)) as recorder:
        recorder.step()
    run = Run(tmp_path / "r")
    assert set(features) == {"representation", "projection", "momentum_projection"}
    assert list(run["spectrum.rank"].columns) == list(features)
    for name, values in features.items():
        expected = svd(values.numpy())
        np.testing.assert_allclose(run[f"spectrum.{name}"].iloc[0], expected["variances"], rtol=1e-5, atol=1e-12)
        for measure in MEASURES:
            np.testing.assert_allclose(run[f"spectrum.{measure}"][name].iloc[0], expected[measure], rtol=1e-5)


# ---- closed forms


def test_a_cloud_without_a_direction_has_all_ranks_at_its_dimension() -> None:
    found = measured(cloud(np.ones(16), samples=20000))
    for name in ("rank", "rankme", "participation_ratio"):
        assert found[f"spectrum.{name}"]["representation"] == pytest.approx(16, rel=0.01)
    assert found["spectrum.stable_rank"]["representation"] == pytest.approx(16, rel=0.05)  # the largest is biased
    assert found["spectrum.feature_std"]["representation"] == pytest.approx(0.25, rel=0.01)


def test_features_on_a_line_have_rank_one_and_no_law() -> None:
    found = measured(cloud([1.0]) * torch.linspace(-1, 1, 32))
    for name in ("rank", "rankme", "participation_ratio", "stable_rank"):
        assert found[f"spectrum.{name}"]["representation"] == pytest.approx(1, rel=1e-4)
    assert np.isnan(found["spectrum.alpha_req"]["representation"])


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_of_a_power_law_is_found(alpha: float) -> None:
    basis = torch.linalg.qr(cloud(np.ones(200)) - cloud(np.ones(200)).mean(dim=0))[0]  # orthonormal, and of mean zero
    found = measured(basis * torch.arange(1, 201) ** (-alpha / 2))
    assert found["spectrum.alpha_req"]["representation"] == pytest.approx(alpha, rel=1e-6)


def test_an_uncentered_rank_is_low_where_the_mean_is_large() -> None:
    found = measured(cloud(np.ones(128), samples=4000, mean=20.0))
    assert found["spectrum.rankme"]["representation"] == pytest.approx(10, abs=1)
    assert found["spectrum.rank"]["representation"] == pytest.approx(126, abs=2)


def test_equal_embeddings_have_no_deviation_and_no_variance() -> None:
    found = measured(torch.ones(SAMPLES, 8))
    assert set(found["spectrum.representation"].values()) == {0.0}
    assert found["spectrum.feature_std"]["representation"] == 0
    assert found["spectrum.rankme"]["representation"] == pytest.approx(1, rel=1e-4)
    assert np.isnan(found["spectrum.rank"]["representation"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_feature_that_is_not_finite_makes_its_tap_unknown_and_no_other(value: float) -> None:
    healthy = cloud(np.ones(8))
    broken = healthy.clone()
    broken[150, 3] = value
    found = measured({"representation": healthy, "projection": broken})
    alone = measured(healthy)
    assert all(np.isnan(each) for each in found["spectrum.projection"].values())
    assert found["spectrum.representation"] == alone["spectrum.representation"]
    for name in MEASURES:
        assert np.isnan(found[f"spectrum.{name}"]["projection"]), name
        np.testing.assert_equal(
            found[f"spectrum.{name}"]["representation"], alone[f"spectrum.{name}"]["representation"]
        )


def test_features_of_different_sizes_keep_their_columns() -> None:
    named = {"representation": cloud(np.ones(8)), "projection": cloud(np.ones(3)), "prediction": 2 * cloud(np.ones(8))}
    found = measured(named)
    assert list(found["spectrum.rank"]) == list(named)
    for name, features in named.items():
        alone = measured({name: features})
        for measure in MEASURES:
            np.testing.assert_equal(found[f"spectrum.{measure}"][name], alone[f"spectrum.{measure}"][name])


# ---- blocks


class Blocks(nn.Module):
    """Two blocks whose outputs are built by ``shape`` from (N, D)."""

    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.blocks = nn.ModuleList([block(), block()])
        self.head = nn.Linear(6, 2)


class Tokens(Blocks):
    def __init__(self) -> None:
        super().__init__(lambda: nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x)
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return tokens.mean(dim=1)


class Pixels(Blocks):
    """Channels second, or, where ``last``, at the end as in a Swin Transformer."""

    def __init__(self, last: bool) -> None:
        super().__init__((lambda: nn.Linear(6, 6)) if last else (lambda: nn.Conv2d(6, 6, 1)))
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.stem(x.unflatten(1, (2, 5)))
        pixels = pixels if self.last else pixels.permute(0, 3, 1, 2)
        for block in self.blocks:
            pixels = pixels + block(pixels)
        return pixels.mean(dim=(1, 2) if self.last else (2, 3))


@pytest.mark.parametrize("make", [Tokens, lambda: Pixels(True), lambda: Pixels(False)], ids=["NLD", "NHWC", "NCHW"])
def test_the_output_of_a_block_is_averaged_over_its_positions(make: Callable[[], Blocks]) -> None:
    torch.manual_seed(0)
    model = make()
    images = torch.randn(200, 10, 6)
    outputs: dict[str, Tensor] = {}
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, __, output, index=index: outputs.update({f"blocks.{index}": output}))
    with torch.no_grad():
        model(images)
    positions = (1,) if isinstance(model, Tokens) else (1, 2) if getattr(model, "last", False) else (2, 3)
    expected = {name: svd(each.mean(dim=positions).double().numpy()) for name, each in outputs.items()}
    fixed = HeldOut(images[:50], None, images[50:], None, lambda batch: {"representation": model(batch)}, chunk=64)
    target = make_target(model, held_out=fixed)
    kind = plugins.load("probes", "spectrum")
    probe = kind(kind.Parameters(), target)
    found = probe.measure(Step(0, target))
    assert probe.labels["spectrum.rank"] == ["representation", "blocks.0", "blocks.1"]
    assert "spectrum.blocks.0" not in found
    for measure in MEASURES:
        for column, name in enumerate(probe.labels[f"spectrum.{measure}"][1:], start=1):
            np.testing.assert_allclose(found[f"spectrum.{measure}"][column], expected[name][measure], rtol=1e-5)
    about = probe.about["spectrum.rank"]
    assert (about["samples"], about["dimensions"]["blocks.1"], about["centered"]) == (200, 6, True)


def test_blocks_and_the_momentum_encoder_can_be_left_out() -> None:
    torch.manual_seed(0)
    model = Tokens()
    fixed = HeldOut(
        torch.randn(20, 4, 6),
        None,
        torch.randn(20, 4, 6),
        None,
        lambda batch: {"representation": model(batch)},
        encode_momentum=lambda batch: {"momentum_representation": model(batch)},
    )
    kind = plugins.load("probes", "spectrum")
    target = make_target(model, held_out=fixed)
    probe = kind(kind.Parameters(blocks=False, momentum=False), target)
    assert probe.labels["spectrum.rank"] == ["representation"]
    assert not target.taps


# ---- at construction


def test_what_cannot_be_measured_is_said_at_construction() -> None:
    kind = plugins.load("probes", "spectrum")
    with pytest.raises(InputError, match="needs held-out images"):
        kind(kind.Parameters(), make_target(nn.Linear(2, 2)))
    with pytest.raises(InputError, match="'rank' stands for two things"):
        measured({"representation": cloud(np.ones(3)), "rank": cloud(np.ones(3))})
    with pytest.raises(InputError, match=r"tensor of shape \(2,\) as 'representation'; expected .* of shape \(N, D\)"):
        measured({"representation": cloud(np.ones(3))[:, 0]})


# ---- who reads it


def test_the_collapse_detector_reads_what_is_recorded(tmp_path: Path) -> None:
    run = record(tmp_path / "r", 3, only("spectrum", every=1))
    recorded = [name for name in Detector.series if name in run]
    assert {"spectrum.representation", "spectrum.projection"} <= set(recorded)
    for name in recorded:
        assert Detector().detect(name, run[name], run.about(name)) == []
        assert run.about(name)["samples"] == 2 * len(data(2)[0])
        assert run.about(name)["dimensions"] == run[name].shape[1]
    for name in MEASURES:
        assert run.about(f"spectrum.{name}")["measure"]
        assert {"representation", "projection"} <= set(run[f"spectrum.{name}"].columns)


def test_the_momentum_encoder_of_moco_is_measured_and_left_as_it_was() -> None:
    from stabilitylab.methods.moco_v3 import Method

    torch.manual_seed(0)

    class Backbone(nn.Sequential):
        num_features = 12

    method = Method(Method.Config(hidden=16, dim=8), lambda: Backbone(nn.Linear(5, 12), nn.ReLU()))
    images = torch.randn(60, 5)
    fixed = HeldOut(images[:30], None, images[30:], None, method.encode, encode_momentum=method.encode_momentum)
    target = make_target(method, held_out=fixed)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    kind = plugins.load("probes", "spectrum")
    probe = kind(kind.Parameters(blocks=False), target)
    found = probe.measure(Step(0, target))
    names = ["representation", "projection", "prediction", "momentum_representation", "momentum_projection"]
    assert probe.labels["spectrum.rank"] == names
    # a copy at first: the two branches agree
    for name in ("representation", "projection"):
        torch.testing.assert_close(found[f"spectrum.{name}"], found[f"spectrum.momentum_{name}"])
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())
    assert all(module.training for module in method.modules())
    without = Method(Method.Config(hidden=16, dim=8, predictor_layers=0), lambda: Backbone(nn.Linear(5, 12)))
    assert set(without.encode(images)) == {"representation", "projection"}


def test_a_teacher_outside_of_the_model_is_shown_images_in_eval_mode_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 4))
    teacher = deepcopy(model)
    images = torch.randn(60, 5)
    fixed = HeldOut(
        images[:30],
        None,
        images[30:],
        None,
        lambda batch: {"representation": model(batch)},
        encode_momentum=lambda batch: {"momentum_representation": teacher(batch)},
    )
    target = make_target(model, held_out=fixed, teacher=teacher)
    before, random = {name: value.clone() for name, value in teacher.state_dict().items()}, torch.get_rng_state()
    kind = plugins.load("probes", "spectrum")
    found = kind(kind.Parameters(), target).measure(Step(0, target))
    torch.testing.assert_close(found["spectrum.representation"], found["spectrum.momentum_representation"])
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(module.training for module in teacher.modules())
    assert torch.equal(random, torch.get_rng_state())
