"""Truth: numpy and closed forms, and the same loop without a recorder, which it must not change by a bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stabilitylab import HeldOut, InputError, Recorder, Run
from stabilitylab.target import untouched

LEAN = {"activations": False, "attention": False}


def small() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def backward(model: nn.Module, step: int) -> Tensor:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
    for each in model.parameters():
        each.grad = None
    loss = (model(x) ** 2).mean()
    loss.backward()
    return loss


# ---- weights that are given new storage


@pytest.mark.parametrize("how", ["data", "vector", "moved"])
def test_weights_that_are_replaced_under_their_parameters_are_measured_as_they_are(tmp_path: Path, how: str) -> None:
    model, teacher = small(), small()
    ratios, norms, distances = [], [], []
    probes = {"weights": {"every": 1}, "teacher": {"every": 1}, **LEAN}
    with Recorder(tmp_path / "r", model, teacher=teacher, probes=probes) as recorder:
        for step in range(5):
            backward(model, step)
            recorder.step()
            before = model.weight.detach().clone()
            norms.append(float(before.norm()))
            distances.append(float((before - teacher.weight.detach()).norm() / before.norm()))
            with torch.no_grad():
                new = [each - 0.1 * each.grad for each in model.parameters()]
            if how == "vector":
                nn.utils.vector_to_parameters(torch.cat([each.flatten() for each in new]), model.parameters())
            else:
                for parameter, value in zip(model.parameters(), new, strict=True):
                    parameter.data = value.clone() if how == "data" else value.to(memory_format=torch.contiguous_format)
            ratios.append(float((model.weight.detach() - before).norm() / before.norm()))
    run = Run(tmp_path / "r")
    np.testing.assert_allclose(run["updates.ratio"]["weight"], ratios, rtol=1e-5)
    np.testing.assert_allclose(run["weights.norm"]["weight"], norms, rtol=1e-5)
    np.testing.assert_allclose(run["teacher.distance"]["weight"], distances, rtol=1e-4, atol=1e-6)


def test_a_model_that_changes_its_type_loses_one_update_and_no_probe(tmp_path: Path) -> None:
    model = small()
    with Recorder(tmp_path / "r", model, probes={"updates": {}, **LEAN}) as recorder:
        for step in range(6):
            if step == 3:
                model.double()
            x = torch.ones(1, 3, dtype=model.weight.dtype)
            model.zero_grad()
            model(x).sum().backward()
            recorder.step()
    run = Run(tmp_path / "r")
    assert run.header["disabled"] == {}
    assert run["updates.ratio"].index.tolist() == [0, 1, 3, 4, 5]


# ---- numbers that the loop goes on to use, or of several types


def test_what_the_loop_goes_on_to_write_into_is_recorded_as_it_was(tmp_path: Path) -> None:
    total, momentum = torch.zeros(()), torch.zeros(())
    with Recorder(tmp_path / "r", small()) as recorder:
        for step in range(5):
            total += step
            momentum.fill_(0.9 + step / 100)
            recorder.step(total, scalars={"momentum": momentum}, scale=total + 1)
            total.zero_()
    run = Run(tmp_path / "r")
    assert run["training.loss"]["loss"].tolist() == [0, 1, 2, 3, 4]
    assert run["training.scale"]["scale"].tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(run["training.momentum"]["momentum"], 0.9 + np.arange(5) / 100, rtol=1e-6)


@pytest.mark.parametrize(
    "losses",
    [
        [torch.tensor(4), 1.5, 2.7, 0.3], [torch.tensor(4.0, dtype=torch.float16), 1e6, 1.2345678],
        [torch.tensor(4), float("nan"), float("inf")], [1.5, torch.tensor(2.0, dtype=torch.float64), torch.tensor(3)],
    ],
)  # fmt: skip
def test_losses_of_several_types_are_all_exact(tmp_path: Path, losses: list[Any]) -> None:
    with Recorder(tmp_path / "r", small()) as recorder:
        for loss in losses:
            recorder.step(loss)
    np.testing.assert_array_equal(Run(tmp_path / "r")["training.loss"]["loss"], [float(each) for each in losses])


@pytest.mark.parametrize("momentum", ["much", [1, 2], {}])
def test_numbers_that_are_none_switch_off_a_probe_and_end_nothing(tmp_path: Path, momentum: Any) -> None:
    model = small()
    with Recorder(tmp_path / "r", model) as recorder:
        with pytest.warns(UserWarning, match="'training' failed at step 0"):
            recorder.step(backward(model, 0), scalars={"momentum": momentum})
        for step in (1, 2):
            recorder.step(backward(model, step))
    assert len(Run(tmp_path / "r")["gradients.norm"]) == 3


def test_outputs_that_are_no_tensors_are_named_and_left_out(tmp_path: Path) -> None:
    with Recorder(tmp_path / "r", small()) as recorder, pytest.warns(UserWarning, match=r"outputs\['x'\] is left out"):
        recorder.step(1.0, outputs={"x": np.zeros((2, 2)), "projection": torch.zeros(2, 2)})
    assert len(Run(tmp_path / "r")["training.loss"]) == 1


# ---- steps of the optimizer


def update(optimizer: torch.optim.Optimizer, loss: Any = None, factor: float = 1.0) -> Any:
    for group in optimizer.param_groups:
        for each in group["params"]:
            each.data -= factor * group["lr"] * each.grad
    return loss


class Positional(torch.optim.SGD):
    """An optimizer whose step takes a number behind its closure."""

    def step(self, closure: Callable[..., Any], factor: float = 1.0) -> Any:  # type: ignore[override]
        return update(self, closure(), factor)


class Named(torch.optim.SGD):
    def step(self, loss_fn: Callable[..., Any]) -> Any:  # type: ignore[override]
        return update(self, loss_fn())


class Only(torch.optim.SGD):
    def step(self, closure: Callable[..., Any], /) -> Any:  # type: ignore[override]
        return update(self, closure(True, last=True))


class OfModel(torch.optim.SGD):
    def step(self, model: nn.Module) -> Any:  # type: ignore[override]
        assert isinstance(model, nn.Linear)
        return update(self)


STEPS: dict[str, tuple[type, Callable[[Any, Callable[..., Any], nn.Module], Any]]] = {
    "a number behind": (Positional, lambda optimizer, closure, _: optimizer.step(closure, 0.5)),
    "another name": (Named, lambda optimizer, closure, _: optimizer.step(closure)),
    "another keyword": (Named, lambda optimizer, closure, _: optimizer.step(loss_fn=closure)),
    "by position alone": (Only, lambda optimizer, closure, _: optimizer.step(closure)),
    "a model": (OfModel, lambda optimizer, _, model: optimizer.step(model)),
}


@pytest.mark.parametrize("how", STEPS)
def test_any_way_to_call_the_optimizer_trains_as_without_a_recorder(tmp_path: Path, how: str) -> None:
    kind, call = STEPS[how]

    def trained(path: Path | None) -> Tensor:
        model = small()
        optimizer = kind(model.parameters(), lr=0.1)
        recorder = None if path is None else Recorder(path, model, optimizer, probes=LEAN)
        for step in range(4):
            loss = backward(model, step)
            if recorder is not None:
                recorder.step(loss)
            call(optimizer, lambda *_, loss=loss, **__: loss, model)
        if recorder is not None:
            recorder.close()
        return model.weight.detach().clone()

    assert torch.equal(trained(tmp_path / "r"), trained(None))
    assert Run(tmp_path / "r").header["self_check"]["mistake"] == "passed"


def test_an_optimizer_by_name_alone_is_not_checked(tmp_path: Path) -> None:
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            self.inner, self.param_groups, self.state, self.defaults = inner, inner.param_groups, inner.state, {}

    model = small()
    with Recorder(tmp_path / "r", model, Wrapper(torch.optim.SGD(model.parameters(), lr=0.1))) as recorder:
        recorder.step(backward(model, 0))
    run = Run(tmp_path / "r")
    assert run.header["self_check"]["mistake"] == "not checked"
    assert run["training.lr"].to_numpy().tolist() == [[0.1]]


# ---- modes, ends, settings


def test_steps_in_inference_mode_and_outside_of_it(tmp_path: Path) -> None:
    model = small()
    with Recorder(tmp_path / "r", model, probes=LEAN) as recorder:
        for step in range(6):
            loss = backward(model, step)
            with torch.inference_mode(mode=step % 2 == 0):
                recorder.step(loss)
    run = Run(tmp_path / "r")
    assert run.header["disabled"] == {}
    assert len(run["updates.ratio"]) == 6


def test_a_closed_recorder_says_that_it_records_nothing(tmp_path: Path) -> None:
    model = small()
    recorder = Recorder(tmp_path / "r", model, flush_steps=2)
    recorder.step(1.0)
    recorder.close()
    for _ in range(5):
        with pytest.warns(UserWarning, match="the recorder is closed"):
            recorder.step(2.0)
    assert len(Run(tmp_path / "r")["training.loss"]) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"flush_steps": 0}, "flush_steps was 0; expected a whole number of at least 1"),
        ({"flush_steps": None}, "flush_steps was None"),
        ({"flush_seconds": None}, "flush_seconds was None; expected a number"),
        ({"first_step": 1.5}, "first_step was 1.5"),
        ({"self_check": "a"}, "self_check was 'a'"),
        ({"probes": ["weights"]}, "probes was"),
        ({"probes": {"weights": 5}}, r"probes\.weights was 5; expected its parameters, True or False"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_written(
    tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        Recorder(tmp_path / "r", small(), **given)
    assert not (tmp_path / "r" / "run.json").exists()


IMAGES = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": [1, 2]}, r"HeldOut\.images was a list; expected a tensor"),
        ({"labels": torch.zeros(4)}, r"HeldOut\.labels was a torch\.float32 tensor of shape \(4,\); expected whole"),
        (
            {"bank_labels": torch.zeros(4, 1).long()},
            r"HeldOut\.bank_labels was a torch\.int64 tensor of shape \(4, 1\)",
        ),
        ({"encode": 3}, r"HeldOut\.encode was 3"),
        ({"chunk": 0}, r"HeldOut\.chunk was 0"),
        ({"labels": [0, 1]}, "4 images with 2 labels"),
    ],
)
def test_held_out_images_that_cannot_be_used_are_named(changed: dict[str, Any], said: str) -> None:
    good: dict[str, Any] = {
        "images": IMAGES,
        "labels": [0, 1, 0, 1],
        "bank": IMAGES.numpy(),
        "bank_labels": (0, 1, 0, 1),
    }
    good["encode"] = lambda x: {"representation": x}
    held_out = HeldOut(**good)
    for labels in (held_out.labels, held_out.bank_labels):
        assert labels is not None
        assert labels.dtype == torch.int64
    with pytest.raises(InputError, match=said):
        HeldOut(**(good | changed))


@pytest.mark.parametrize("features", [IMAGES, None, {"representation": torch.zeros(4)}, {"x": IMAGES}])
def test_features_that_are_none_are_named(tmp_path: Path, features: Any) -> None:
    held_out = HeldOut(IMAGES, torch.arange(4) % 2, IMAGES, torch.arange(4) % 2, encode=lambda _: features)
    probes = {"knn": {"k": 1}, "spectrum": False, **LEAN}
    with (
        Recorder(tmp_path / "r", small(), held_out=held_out, probes=probes) as recorder,
        pytest.warns(UserWarning, match=r"'knn' failed at step 0 and is off now: .*(HeldOut\.encode (returned|gives))"),
    ):
        recorder.step(1.0)


def test_a_look_leaves_buffers_as_they_were() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.register_buffer("last", torch.zeros(3), persistent=False)
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            self.last = x.mean(dim=0)
            normed: Tensor = self.norm(x)
            return normed

    model = Counting()
    held = {name: (each, each.clone()) for name, each in model.named_buffers()}
    with untouched(model), torch.no_grad():
        model.eval()(torch.ones(2, 3))
    assert model.training
    for name, each in model.named_buffers():
        assert each is held[name][0]
        assert torch.equal(each, held[name][1])
