"""Truth: the same loop without a recorder, or without an interruption."""

from __future__ import annotations

import gc
import os
import pickle
import random
import subprocess
import sys
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_loop import CLASSES, FEATURES, SAMPLES, build, data, held_out, only, record, training
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from stabilitylab import HeldOut, InputError, Recorder, Run, plugins
from stabilitylab.probe import Target
from stabilitylab.recording import buffer

# ---- a probe changes nothing


def states(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters() if p.grad is not None)]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    modes = [module.training for module in model.modules()]
    return [*(t.clone() for t in tensors), torch.get_rng_state(), np.random.get_state()[1], random.getstate(), modes]


@pytest.mark.parametrize("name", plugins.names("probes"))
def test_a_probe_changes_nothing(tmp_path: Path, name: str) -> None:
    after = []
    for recorded in (False, True):
        model, optimizer = build()
        recorder = None
        if recorded:
            recorder = Recorder(tmp_path / "r", model, optimizer, probes=only(name, every=1), held_out=held_out(model))
        for step in training(model, optimizer, 0, 50):
            if recorder:
                recorder.step(**step)
        if recorder:
            recorder.close()
        after.append(states(model, optimizer))
    for without, with_probe in zip(*after, strict=True):
        if isinstance(without, torch.Tensor | np.ndarray):
            np.testing.assert_array_equal(np.asarray(without), np.asarray(with_probe))
        else:
            assert without == with_probe
    assert len(Run(tmp_path / "r").series) > 0


class Count(TorchDispatchMode):
    """Count the tensor operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def counted(tmp_path: Path, probes: dict[str, Any], steps: int = 20) -> Counter[str]:
    model, optimizer = build()
    recorder = Recorder(tmp_path / "c", model, optimizer, probes=probes, held_out=held_out(model), flush_seconds=1e9)
    seen: Counter[str] = Counter()
    for step in training(model, optimizer, 0, steps):
        if recorder.index == 0:  # the first step may allocate
            recorder.step(**step)
            continue
        with Count() as count:
            recorder.step(**step)
        seen += count.seen
    with Count() as count:
        recorder.flush()
    assert count.seen["_local_scalar_dense"] == 0
    recorder.close()
    return seen


@pytest.mark.parametrize("name", plugins.names("probes"))
def test_no_probe_waits_for_the_device(tmp_path: Path, name: str) -> None:
    every = plugins.load("probes", name).Parameters().every
    seen = counted(tmp_path, only(name), steps=2 * every + 2)
    assert seen["_local_scalar_dense"] == 0
    assert seen["nonzero"] == 0


@pytest.mark.parametrize("depth", [1, 30])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_at_most_ten_operations_a_step_for_gradients_however_many_tensors(
    tmp_path: Path, depth: int, max_norm: float | None
) -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 8), *[nn.Linear(8, 8) for _ in range(depth)], nn.Linear(8, CLASSES))
    images, labels = data()
    recorder = Recorder(tmp_path / "c", model, probes=only("gradients"), flush_seconds=1e9)
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        with Count() as count:
            recorder.step(loss, max_norm=max_norm)
        count.seen.pop("detach")  # of the loss: a view, without work
        clipping = {"add": 1, "reciprocal": 1, "mul": 1, "clamp": 1} if max_norm else {}
        assert count.seen == {"_foreach_norm": 2, "stack": 2, "linalg_vector_norm": 1, **clipping}
        assert count.seen.total() <= 10
    recorder.close()


def test_one_transfer_a_flush_and_nothing_that_grows_with_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfers = []
    transfer = buffer._transfer
    monkeypatch.setattr(buffer, "_transfer", lambda tensors: transfers.append(len(tensors)) or transfer(tensors))
    model, optimizer = build()
    recorder = Recorder(tmp_path / "r", model, optimizer, held_out=held_out(model), flush_steps=10, flush_seconds=1e9)
    sizes, largest, live = [], 0, []
    for step in training(model, optimizer, 0, 400):
        recorder.step(**step)
        largest = max(largest, recorder.nbytes)
        if recorder.index % 100 == 0:
            assert recorder.nbytes == 0
            gc.collect()
            sizes.append(
                sum(t.numel() * t.element_size() for t in gc.get_objects() if issubclass(type(t), torch.Tensor))
            )
            live.append(len(recorder._rows._rows))
    assert len(transfers) == 40
    assert live == [0, 0, 0, 0]
    assert max(sizes[1:]) <= sizes[0] * 1.01
    run = Run(tmp_path / "r")
    row = sum(len(run.about(series)["labels"]) for series in run.series)
    assert largest <= 10 * row * 8  # rows of one flush, at most 8 bytes a value
    recorder.close()


# ---- the loop


def test_a_loop_without_held_out_images_says_what_it_left_out(tmp_path: Path) -> None:
    model, optimizer = build()
    with Recorder(tmp_path / "r", model, optimizer) as recorder:
        for step in training(model, optimizer, 0, 3):
            recorder.step(step["loss"])
    run = Run(tmp_path / "r")
    assert {"gradients.norm", "updates.ratio", "training.loss", "training.lr"} <= set(run.series)
    assert "needs held-out images" in run.header["left_out"]["knn"]
    with pytest.raises(InputError, match="needs held-out images"):
        Recorder(tmp_path / "s", model, optimizer, probes={"knn": {}})
    with pytest.raises(InputError, match="no probe is named 'gradient'; did you mean gradients"):
        Recorder(tmp_path / "s", model, optimizer, probes={"gradient": {}})
    assert not (tmp_path / "s").exists()


def test_continuing_gives_the_series_of_an_uninterrupted_run(tmp_path: Path) -> None:
    whole = record(tmp_path / "whole", 40, {"knn": {"every": 4, "k": 5}})
    model, optimizer = build()
    probes = {"knn": {"every": 4, "k": 5}}
    recorder = Recorder(tmp_path / "parts", model, optimizer, probes=probes, held_out=held_out(model))
    for step in training(model, optimizer, 0, 22):
        recorder.step(**step)
    recorder.settle()  # a checkpoint after 22 steps
    state = recorder.state()
    saved = {name: value.clone() for name, value in state.items()}
    recorder.close("interrupted")
    recorder = Recorder(tmp_path / "parts", model, optimizer, probes=probes, held_out=held_out(model), first_step=22)
    recorder.load_state(saved)
    for step in training(model, optimizer, 22, 40):
        recorder.step(**step)
    recorder.close()
    again = Run(tmp_path / "parts")
    assert again.series == whole.series
    for series in whole.series:
        if not whole.about(series).get("wall_clock"):
            np.testing.assert_array_equal(again[series].to_numpy(), whole[series].to_numpy(), err_msg=series)
            assert list(again[series].index) == list(whole[series].index)


def test_the_end_of_a_run_is_told(tmp_path: Path) -> None:
    model, optimizer = build()
    for error, status in ((KeyboardInterrupt, "interrupted"), (RuntimeError, "failed")):
        with pytest.raises(error), Recorder(tmp_path / status, model, optimizer) as recorder:
            for step in training(model, optimizer, 0, 5):
                recorder.step(step["loss"])
                if recorder.index == 3:
                    raise error("boom")
        run = Run(tmp_path / status)
        assert run.status == status
        assert len(run["gradients.norm"]) == 3


def test_a_sharded_run_that_fails_waits_for_no_other_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "sharded", property(lambda _: True))
    rows = {}
    for error in (None, RuntimeError):
        model, optimizer = build()
        with suppress(RuntimeError), Recorder(tmp_path / str(error), model, optimizer) as recorder:
            for step in training(model, optimizer, 0, 5):
                recorder.step(step["loss"])
            if error:
                raise error
        run = Run(tmp_path / str(error))
        rows[error] = len(run["gradients.norm"]), len(run["updates.ratio"])
    assert rows == {None: (5, 5), RuntimeError: (5, 4)}


def test_a_probe_that_fails_is_switched_off_and_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = plugins.load("probes", "spectrum")

    def fail(self: Any, step: Any) -> None:
        raise ZeroDivisionError("nothing to divide")

    monkeypatch.setattr(kind, "measure", fail)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run = record(tmp_path / "r", 5)
    assert [str(each.message) for each in told] == [
        "the probe 'spectrum' failed at step 0 and is off now: ZeroDivisionError: nothing to divide"
    ]
    assert len(run["gradients.norm"]) == 5
    assert "ZeroDivisionError" in run.header["disabled"]["spectrum"]["traceback"]


def test_a_probe_that_fails_later_keeps_what_it_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = plugins.load("probes", "spectrum")
    measure = kind.measure

    def fail_at_50(self: Any, step: Any) -> Any:
        if step.index == 50:
            raise ZeroDivisionError("nothing to divide")
        return measure(self, step)

    monkeypatch.setattr(kind, "measure", fail_at_50)
    with pytest.warns(UserWarning, match="failed at step 50"):
        run = record(tmp_path / "r", 60)
    assert list(run["spectrum.rank"].index) == [0]
    assert len(run["gradients.norm"]) == 60


def test_the_loss_may_be_a_tensor_or_a_number(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    with Recorder(tmp_path / "r", model) as recorder:
        for loss in (torch.tensor(1.0), 2.0, torch.tensor([3.0])):
            recorder.step(loss)
    assert Run(tmp_path / "r")["training.loss"]["loss"].tolist() == [1.0, 2.0, 3.0]


def test_wrong_parameters_of_a_probe_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"probes\.updates\.evry is not known; probes\.updates has every"):
        Recorder(tmp_path / "r", nn.Linear(2, 1), probes={"updates": {"evry": 3}})


def test_images_without_labels_have_a_spectrum_and_no_accuracy(tmp_path: Path) -> None:
    model, optimizer = build()
    fixed = HeldOut(data(2)[0], None, data(3)[0], None, held_out(model).encode)
    with Recorder(tmp_path / "r", model, optimizer, held_out=fixed) as recorder:
        recorder.step()
    run = Run(tmp_path / "r")
    assert "spectrum.rank" in run
    assert "knn.accuracy" not in run
    assert "needs the labels" in run.header["left_out"]["knn"]


def test_a_frozen_first_layer_stays_the_first_layer(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1))
    with Recorder(tmp_path / "r", model) as recorder:
        recorder.step(1.0)
    run = Run(tmp_path / "r")
    assert (run.layers.names, run.layers.first) == (("0", "1"), "0")


def test_a_queued_class_that_is_not_held_out_is_never_right(tmp_path: Path) -> None:
    model, optimizer = build()
    with Recorder(tmp_path / "r", model, optimizer, probes=only("knn", every=1), held_out=held_out(model)) as recorder:
        for step in training(model, optimizer, 0, 2):
            step["outputs"]["labels"] = torch.full((SAMPLES,), 77)
            recorder.step(**step)
    assert (Run(tmp_path / "r")["knn.accuracy"]["queue"] == 0).all()


@pytest.mark.parametrize("name", plugins.names("probes"))
def test_every_series_is_named_after_its_probe_and_says_its_schedule(tmp_path: Path, name: str) -> None:
    model, optimizer = build()
    kind = plugins.load("probes", name)
    target = Target(model, optimizer, record(tmp_path / "r", 2).layers, held_out(model))
    made = kind(kind.Parameters(), target)
    assert all(series.startswith(f"{name}.") for series in made.labels)
    assert all(field.description for field in kind.Parameters.model_fields.values())


# ---- other processes


def test_a_forked_copy_records_nothing_and_lets_the_run_be(tmp_path: Path) -> None:
    model, optimizer = build()
    recorder = Recorder(tmp_path / "r", model, optimizer, flush_steps=2)
    for index, step in enumerate(training(model, optimizer, 0, 12)):
        if index == 5:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
                child = os.fork()
            if child == 0:
                for _ in range(10):
                    recorder.step(step["loss"])
                recorder.flush()
                recorder.close("failed")
                del recorder
                gc.collect()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        recorder.step(**step)
    with pytest.raises(InputError, match="being written"):
        Recorder(tmp_path / "r", model, first_step=3)
    recorder.close()
    run = Run(tmp_path / "r")
    assert run.status == "completed"
    assert list(run["gradients.norm"].index) == list(range(12))
    assert len(run.header["attempts"]) == 1


class Images(torch.utils.data.Dataset):
    """Forked workers inherit whatever the loop has."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((2,), float(index))


def test_workers_of_a_data_loader_do_not_disturb_the_run(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    with Recorder(tmp_path / "r", model, flush_steps=1) as recorder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for _ in range(2):
            for images in torch.utils.data.DataLoader(Images(), batch_size=2, num_workers=2):
                recorder.step(model(images).mean())
    assert list(Run(tmp_path / "r")["training.loss"].index) == list(range(8))


def test_a_recorder_is_not_sent_to_another_process(tmp_path: Path) -> None:
    with (
        Recorder(tmp_path / "r", nn.Linear(2, 1)) as recorder,
        pytest.raises(InputError, match="make it in the process that trains"),
    ):
        pickle.dumps(recorder)


# ---- a recorder that nobody closes


SCRIPT = """
import torch, sys
from stabilitylab import Recorder
model = torch.nn.Linear(2, 1)
recorder = Recorder(sys.argv[1], model)
for index in range(7):
    recorder.step(model(torch.ones(1, 2)).sum())
if sys.argv[2] == "crash":
    raise RuntimeError("boom")
if sys.argv[2] == "forget":
    del recorder
"""


@pytest.mark.parametrize(
    ("how", "status", "message"),
    [
        ("end", "completed", ""),
        ("crash", "failed", "RuntimeError: boom"),
        ("forget", "failed", "the recorder was given up without being closed"),
    ],
)
def test_what_was_recorded_reaches_the_disk_when_nobody_closes(
    tmp_path: Path, how: str, status: str, message: str
) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, tmp_path / "r", how], capture_output=True, check=how != "crash")
    run = Run(tmp_path / "r")
    assert list(run["training.loss"].index) == list(range(7))
    assert (run.status, run.header["attempts"][-1]["message"]) == (status, message)


def test_a_training_that_goes_on_elsewhere_begins_a_run_at_its_step(tmp_path: Path) -> None:
    with Recorder(tmp_path / "r", nn.Linear(2, 1), first_step=100) as recorder:
        for _ in range(3):
            recorder.step(1.0)
    assert list(Run(tmp_path / "r")["training.loss"].index) == [100, 101, 102]
