"""Truth: a clock that the test turns, so that every cost is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_loop import build, held_out, training
from torch import nn

from stabilitylab import InputError, Recorder, Run, plugins
from stabilitylab.probe import Parameters, Probe
from stabilitylab.recording import budget
from stabilitylab.recording.budget import Budget
from stabilitylab.target import make_target


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(budget, "time", clock)
    return clock


class Light(Probe):
    fixed_schedule = True


TARGET = make_target(nn.Linear(2, 2))


def probes(**every: int) -> dict[str, Probe]:
    kinds = {"light": Light}
    return {name: kinds.get(name, Probe)(Parameters(every=value), TARGET) for name, value in every.items()}


def run(
    limit: Budget, clock: Clock, on: dict[str, Probe], costs: dict[str, float], steps: int, first: int = 0
) -> list[Any]:
    """Train at one second a step, and look with probes that take their time."""
    changes = []
    for step in range(first, first + steps):
        clock.now += 1.0
        for name, probe in on.items():
            if step % probe.every == 0:
                with limit.timing(name):
                    clock.now += costs[name]
        limit.step()
        if step % 10 == 9:
            new = limit.changes(on)
            for name, every, _ in new:
                on[name].every = every
            changes += new
    return changes


def share(on: dict[str, Probe], costs: dict[str, float]) -> float:
    return sum(costs[name] / probe.every for name, probe in on.items())


def test_heavy_probes_are_stretched_by_powers_of_two_until_the_total_fits(clock: Clock) -> None:
    on = probes(heavy=10, middle=5, light=1)
    costs = {"heavy": 2.0, "middle": 0.05, "light": 0.01}
    changes = run(Budget(0.05, TARGET), clock, on, costs, 300)
    assert share(on, costs) <= 0.05
    assert share(on, costs) > 0.05 / 2  # and no more than needed
    assert on["heavy"].every in (80, 160)
    assert (on["middle"].every, on["light"].every) == (5, 1)
    assert {change.probe for change in changes} == {"heavy"}
    assert "2e+03 ms a measurement and 1e+03 ms a step" in changes[-1].reason


def test_a_schedule_within_the_budget_stays(clock: Clock) -> None:
    on = probes(heavy=50, light=1)
    assert run(Budget(0.05, TARGET), clock, on, {"heavy": 1.0, "light": 0.001}, 400) == []


def test_the_schedules_of_gradients_and_training_are_never_touched(clock: Clock) -> None:
    assert all(plugins.load("probes", name).fixed_schedule for name in ("gradients", "training"))
    on = probes(heavy=1, light=1)
    run(Budget(0.01, TARGET), clock, on, {"heavy": 0.5, "light": 0.5}, 100)
    assert on["light"].every == 1
    assert on["heavy"].every == budget.LARGEST


def test_a_first_measurement_that_pays_for_warming_up_is_forgiven(clock: Clock) -> None:
    on, limit = probes(heavy=10), Budget(0.05, TARGET)
    run(limit, clock, on, {"heavy": 30.0}, 10)
    assert on["heavy"].every > 10
    run(limit, clock, on, {"heavy": 0.1}, 2000, first=10)
    assert on["heavy"].every == 10


def test_a_cost_near_the_limit_does_not_make_the_schedule_flap(clock: Clock) -> None:
    on, limit = probes(heavy=10), Budget(0.05, TARGET)
    changes = []
    for turn in range(20):
        changes += run(limit, clock, on, {"heavy": 0.505 if turn % 2 else 0.495}, 40, first=40 * turn)
    assert len(changes) <= 1


def test_each_change_is_written_into_the_run(tmp_path: Path) -> None:
    model, optimizer = build()
    with Recorder(
        tmp_path / "r", model, optimizer, held_out=held_out(model), budget=1e-4, flush_steps=20, probes={"spectrum": {}}
    ) as recorder:
        for step in training(model, optimizer, 0, 200):
            recorder.step(**step)
    run = Run(tmp_path / "r")
    changes = json.loads((tmp_path / "r" / "run.json").read_text())["schedule"]
    assert {"knn", "spectrum"} <= {each["probe"] for each in changes}
    assert not {"gradients", "training"} & {each["probe"] for each in changes}
    assert list(run["gradients.norm"].index) == list(range(200))
    configured = run.header["probes"]["knn"]["every"]
    for each in changes:
        assert (each["every"] // run.header["probes"][each["probe"]]["every"]).bit_count() == 1
        assert each["step"] % 20 == 0
    first = next(each for each in changes if each["probe"] == "knn")
    seen = run["knn.accuracy"].index
    assert list(seen[seen < first["step"]]) == list(range(0, first["step"], configured))
    assert len(seen) < 200 // configured


def test_updates_stay_right_when_their_schedule_changes(tmp_path: Path) -> None:
    ratios = []
    for limit in (None, 1e-4):
        model, optimizer = build()
        with Recorder(tmp_path / str(limit), model, optimizer, budget=limit, flush_steps=10) as recorder:
            for step in training(model, optimizer, 0, 120):
                recorder.step(step["loss"])
        ratios.append(Run(tmp_path / str(limit))["updates.ratio"])
    whole, some = ratios
    assert 0 < len(some) < len(whole)
    torch.testing.assert_close(
        torch.tensor(some.to_numpy()), torch.tensor(whole.loc[some.index].to_numpy()), equal_nan=True
    )


def test_a_budget_must_be_positive(tmp_path: Path) -> None:
    for wrong in (0, -0.1, float("nan")):
        with pytest.raises(InputError, match=r"budget was .*: a positive part of the training time is expected"):
            Recorder(tmp_path / "r", nn.Linear(2, 2), budget=wrong)
