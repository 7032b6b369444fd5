"""Truth: loops in which one thing is done wrong on purpose, and loops in which nothing is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stabilitylab import Recorder, Run, analyze

Loop = Callable[[nn.Module, torch.optim.Optimizer, Recorder, int], None]


def batch(step: int, samples: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(samples, 6, generator=generator), torch.randn(samples, 3, generator=generator)


def backward(net: nn.Module, step: int, factor: float = 1.0) -> None:
    images, goals = batch(step)
    (((net(images) - goals) ** 2).mean() * factor).backward()


def check(path: Path, loop: Loop, steps: int = 12, **options: object) -> dict[str, str]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    with Recorder(path, net, optimizer, probes={"updates": False}, **options) as recorder:
        for step in range(steps):
            loop(net, optimizer, recorder, step)
    return Run(path).header["self_check"]


# ---- right


def plain(net, optimizer, recorder, step):
    optimizer.zero_grad()
    backward(net, step)
    recorder.step()
    optimizer.step()


def clipped_later(net, optimizer, recorder, step):
    optimizer.zero_grad()
    backward(net, step)
    recorder.step()
    nn.utils.clip_grad_norm_(net.parameters(), 0.3)
    optimizer.step()


def clipped_hard_later(net, optimizer, recorder, step):
    optimizer.zero_grad()
    backward(net, step, 1e3)
    recorder.step()
    nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
    optimizer.step()


def clipped_by_value_later(net, optimizer, recorder, step):
    optimizer.zero_grad()
    backward(net, step)
    recorder.step()
    nn.utils.clip_grad_value_(net.parameters(), 0.05)
    optimizer.step()


def the_same_batch_at_no_rate(net, optimizer, recorder, step):
    optimizer.param_groups[0]["lr"] = 0.0
    plain(net, optimizer, recorder, 0)


def accumulated(net, optimizer, recorder, step):
    optimizer.zero_grad()
    for part in range(3):
        backward(net, 3 * step + part, 1 / 3)
    recorder.step()
    optimizer.step()


def accumulated_into_a_closure(net, optimizer, recorder, step):
    optimizer.zero_grad()
    backward(net, 2 * step, 1 / 2)

    def evaluate():
        backward(net, 2 * step + 1, 1 / 2)
        recorder.step()
        nn.utils.clip_grad_norm_(net.parameters(), 0.3)

    optimizer.step(evaluate)


def an_entry_that_never_changes(net, optimizer, recorder, step):
    optimizer.zero_grad()
    net(batch(step)[0]).mean().backward()  # the gradient of the last bias is 1/3 at every step
    recorder.step()
    optimizer.step()


@pytest.mark.parametrize(
    "loop",
    [
        plain,
        clipped_later,
        clipped_hard_later,
        clipped_by_value_later,
        the_same_batch_at_no_rate,
        accumulated,
        accumulated_into_a_closure,
        an_entry_that_never_changes,
    ],
)
def test_nothing_is_said_of_a_loop_that_is_right(tmp_path: Path, loop: Loop) -> None:
    assert check(tmp_path / "r", loop)["mistake"] == "passed"


def test_norms_that_overflow_single_precision_are_no_mistake(tmp_path: Path) -> None:
    def huge(net, optimizer, recorder, step):
        optimizer.zero_grad()
        backward(net, step, 1e25)
        recorder.step()
        optimizer.step()

    verdict = check(tmp_path / "r", huge, steps=3)
    assert verdict["mistake"] in ("passed", "not checked"), verdict
    assert np.isinf(Run(tmp_path / "r")["gradients.norm"].to_numpy()).any()


def test_an_optimizer_that_is_never_stepped_or_not_given_is_not_checked(tmp_path: Path) -> None:
    def nothing(net, optimizer, recorder, step):
        backward(net, step)
        recorder.step()

    assert check(tmp_path / "r", nothing, steps=70)["mistake"] == "not checked"
    assert check(tmp_path / "s", plain, self_check=0)["mistake"] == "not checked"
    with Recorder(tmp_path / "t", nn.Linear(2, 2)) as recorder:
        recorder.step(1.0)
    assert Run(tmp_path / "t").header["self_check"]["mistake"] == "not checked"


# ---- wrong


def scaled(net, optimizer, recorder, step):
    optimizer.zero_grad()
    backward(net, step, 1024.0)
    recorder.step()
    for each in net.parameters():
        each.grad /= 1024
    optimizer.step()


class ScaledAndClipped:
    """fp16's loop with the recorder before ``unscale_``, and clipping at which the factor is no power of two."""

    __name__ = "scaled_and_clipped"

    def __init__(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu")

    def __call__(self, net, optimizer, recorder, step):
        optimizer.zero_grad()
        images, goals = batch(step)
        self.scaler.scale(((net(images) - goals) ** 2).mean()).backward()
        recorder.step()
        self.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        self.scaler.step(optimizer)
        self.scaler.update()


def unscaled_twice(net, optimizer, recorder, step):
    optimizer.zero_grad()
    backward(net, step)
    recorder.step(scale=2.0**16)
    optimizer.step()


def clipped_before(net, optimizer, recorder, step):
    optimizer.zero_grad()
    backward(net, step)
    nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    recorder.step()
    optimizer.step()


def clipped_by_value_before(net, optimizer, recorder, step):
    optimizer.zero_grad()
    backward(net, step)
    nn.utils.clip_grad_value_(net.parameters(), 0.01)
    recorder.step()
    optimizer.step()


def every_micro_batch(net, optimizer, recorder, step):
    backward(net, step)
    recorder.step()
    if step % 3 == 2:
        optimizer.step()
        optimizer.zero_grad()


def before_the_last_micro_batch(net, optimizer, recorder, step):
    optimizer.zero_grad()
    backward(net, step, 1 / 2)
    recorder.step()
    backward(net, step, 1 / 2)
    optimizer.step()


def after_the_update(net, optimizer, recorder, step):
    optimizer.zero_grad()
    backward(net, step)
    optimizer.step()
    recorder.step()


def after_zero_grad(net, optimizer, recorder, step):
    backward(net, step)
    optimizer.step()
    optimizer.zero_grad()
    recorder.step()


def every_other_step(net, optimizer, recorder, step):
    optimizer.zero_grad()
    backward(net, step)
    if step % 2 == 0:
        recorder.step()
    optimizer.step()


def in_the_backward_pass(net, optimizer, recorder, step):
    """The weights are updated without a gradient being left; the optimizer only counts."""
    images, goals = batch(step)
    loss = ((net(images) - goals) ** 2).mean()
    with torch.no_grad():
        for each, gradient in zip(net.parameters(), torch.autograd.grad(loss, [*net.parameters()]), strict=True):
            each -= 0.05 * gradient
    recorder.step(loss)
    optimizer.step()


@pytest.mark.parametrize(
    ("loop", "mistake", "says"),
    [
        (scaled, "scaled", "after scaler.unscale_"),
        (ScaledAndClipped(), "scaled", "after scaler.unscale_"),
        (unscaled_twice, "scaled", "unscaled already"),
        (clipped_before, "clipped", "The total norm was 0.1 in each"),
        (clipped_by_value_before, "clipped", "The largest entry was 0.01 in each"),
        (every_micro_batch, "per-micro-batch", "once for each"),
        (before_the_last_micro_batch, "per-micro-batch", "more micro-batches were added"),
        (after_the_update, "late", "after optimizer.step: call it before"),
        (after_zero_grad, "no gradients", "before zero_grad"),
        (in_the_backward_pass, "no gradients", "updated during the backward pass"),
        (every_other_step, "missed steps", "called 4 times for 8 steps of the optimizer"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_mistake_is_named(tmp_path: Path, loop: Loop, mistake: str, says: str) -> None:
    with pytest.warns(UserWarning, match="what is recorded is not what the optimizer uses"):
        found = check(tmp_path / "r", loop, steps=20)
    assert found["mistake"] == mistake
    assert says in found["sentence"]


def test_an_error_inside_the_check_never_reaches_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("no")

    monkeypatch.setattr("stabilitylab.recording.self_check._slow_norm", broken)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = check(tmp_path / "r", plain)
    assert found == {"mistake": "not checked", "sentence": "The self-check failed: ZeroDivisionError: no"}


def test_the_analysis_says_it_first(tmp_path: Path) -> None:
    for loop, name in ((clipped_before, "wrong"), (plain, "right")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(tmp_path / name, loop, steps=20)
    wrong, right = (analyze(Run(tmp_path / name)).findings for name in ("wrong", "right"))
    assert (wrong[0].kind, wrong[0].verdict) == ("recording", "clipped")
    assert "The total norm was 0.1 in each of 5 steps" in wrong[0].sentence
    assert "recording" not in {each.kind for each in right}


def test_a_wrapper_without_groups_is_an_optimizer_of_which_less_is_known(tmp_path: Path) -> None:
    class Noam:
        def __init__(self, net: nn.Module) -> None:
            self._inner = torch.optim.Adam(net.parameters())

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    wrapper = Noam(net)
    with Recorder(tmp_path / "r", net, wrapper) as recorder:
        for step in range(4):
            net.zero_grad()
            backward(net, step)
            recorder.step()
            wrapper._inner.step()
    run = Run(tmp_path / "r")
    assert len(run["gradients.norm"]) == 4
    assert not any(name.startswith("adam.") for name in run.series)


def test_a_limit_that_not_every_step_reaches_shows_where_two_do(tmp_path: Path) -> None:
    def straddling(net, optimizer, recorder, step):
        optimizer.zero_grad()
        backward(net, step, (3.0, 0.2, 4.0, 0.3, 0.1, 0.2)[step % 6])
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        recorder.step()
        optimizer.step()

    with pytest.warns(UserWarning, match="0.5 in 2 of 5 steps and never more"):
        assert check(tmp_path / "r", straddling)["mistake"] == "clipped"

    def equal(net, optimizer, recorder, step):  # two steps alike are no limit
        optimizer.zero_grad()
        backward(net, step)
        nn.utils.clip_grad_norm_(net.parameters(), 0.0123456 if step in (1, 3) else 0.01 / (step + 1))
        recorder.step()
        optimizer.step()

    assert check(tmp_path / "s", equal)["mistake"] == "passed"


def test_a_compiled_update_is_watched_without_a_warning(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    update = torch.compile(optimizer.step, backend="eager")
    with Recorder(tmp_path / "r", net, optimizer) as recorder:
        for step in range(8):
            optimizer.zero_grad()
            backward(net, step)
            recorder.step()
            update()
    assert Run(tmp_path / "r").header["self_check"]["mistake"] == "passed"


def test_a_check_of_further_parameters_hides_no_mistake_and_takes_nothing_back(tmp_path: Path) -> None:
    for loop, mistake in ((plain, "passed"), (clipped_before, "clipped")):

        def growing(net, optimizer, recorder, step, loop=loop):
            if step == 18:
                net.append(nn.Linear(3, 3))
                optimizer.add_param_group({"params": list(net[3].parameters())})
            loop(net, optimizer, recorder, step)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = check(tmp_path / mistake, growing, steps=20, flush_steps=6)
        assert found["mistake"] == mistake
        assert "5 steps" in found["sentence"]
