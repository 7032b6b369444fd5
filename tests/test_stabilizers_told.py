"""Truth: factors that the test chose, spikes that it planted, and counts by loops over the steps."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
from test_training import go

from stabilitylab import synthetic
from stabilitylab.analysis import analyze
from stabilitylab.findings import Episode, Finding, to_json
from stabilitylab.run import Run
from stabilitylab.schema import findings_schema
from stabilitylab.telling import Evidence
from stabilitylab.telling.stabilizers import tell_stabilizers

STEPS, SPIKES = 1500, (400, 700, 1000, 1300)


@cache
def run_and_episodes() -> tuple[synthetic.Synthetic, tuple[Episode, ...]]:
    """Return a run with planted spikes of two layers, and what an analysis makes of it."""
    made = synthetic.synthesize(steps=STEPS, layers=2, spikes=SPIKES, heights=(12.0,), seed=3)
    with TemporaryDirectory() as folder:
        synthetic.write(Path(folder) / "r", made)
        episodes = analyze(Run(Path(folder) / "r")).episodes
    assert [each.start for each in episodes] == pytest.approx(list(SPIKES), abs=2)
    return made, episodes


def told(path: Path, **extra: pd.DataFrame) -> Finding | None:
    """Return what is told of that run with these series besides."""
    made, episodes = run_and_episodes()
    series = {**made.series, **{name.replace("__", "."): frame for name, frame in extra.items()}}
    synthetic.write(path, synthetic.Synthetic(series, {}, made.layers, (), made.parameters))
    empty: Any = {"frames": {}, "events": (), "lags": pd.DataFrame(), "resolution": {}, "compared": {}}
    found = tell_stabilizers(Evidence(Run(path), episodes=episodes, parameters={"near": 10}, **empty))
    assert len(found) <= 1
    return found[0] if found else None


def frame(**columns: Any) -> pd.DataFrame:
    index = pd.RangeIndex(STEPS, name="step")
    return pd.DataFrame(
        {name: np.broadcast_to(values, STEPS) for name, values in columns.items()}, index, dtype="float32"
    )


def lowered(*at: int, to: float = 0.25) -> np.ndarray:
    values = np.ones(STEPS)
    values[list(at)] = to
    return values


def test_nothing_is_told_of_a_run_without_stabilizers(tmp_path: Path) -> None:
    assert told(tmp_path / "r") is None


def test_what_never_acted_is_told(tmp_path: Path) -> None:
    found = told(tmp_path / "r", stabilizers__coefficient=frame(total=1.0))
    assert found.numbers["clipped"][0]["smallest_step"] is None
    assert (found.verdict, found.sentence) == ("never acted", "Clipping of the total norm never acted in 1,500 steps.")


def test_clipping_in_the_spikes_is_told_from_clipping_elsewhere(tmp_path: Path) -> None:
    factors = lowered(*SPIKES[:3])
    factors[[50, 60]] = 0.5
    found = told(tmp_path / "r", stabilizers__coefficient=frame(total=factors))
    [clipped] = found.numbers["clipped"]
    assert found.verdict == "acted"
    assert (clipped["acted"], clipped["in_spikes"], clipped["smallest_step"]) == (5, 3, SPIKES[0])
    assert (clipped["smallest"], clipped["usual"]) == (0.25, 0.25)
    assert clipped["elsewhere"] == pytest.approx(2 / STEPS, rel=0.1)
    assert "acted in 5 of 1,500 steps (0.33 %)" in found.sentence
    assert "in 3 of 4 gradient spikes and 0.13 % of the other steps." in found.sentence
    assert "So often" not in found.sentence


def test_a_layer_of_any_name_is_no_clipping_of_the_first_one(tmp_path: Path) -> None:
    made = synthetic.synthesize(steps=STEPS, layers=2)
    names = ["stem", "total"]
    renamed = made.series["gradients.norm"].set_axis([f"{each}.w" for each in names], axis=1)
    layers = {"names": names, "of": {f"{each}.w": each for each in names}, "first": "stem"}
    factors = frame(stem=lowered(7), total=1.0)
    series = {"gradients.norm": renamed, "stabilizers.coefficient": factors}
    synthetic.write(tmp_path / "r", synthetic.Synthetic(series, {}, layers, (), made.parameters))
    [found] = [each for each in analyze(Run(tmp_path / "r")).findings if each.kind == "stabilizers"]
    assert found.sentence.startswith("Clipping of each layer acted in 1 of 1,500 steps (0.067 %), in at least one of 2")
    assert len(found.numbers["clipped"]) == 1


def test_many_columns_are_told_together_and_nan_is_no_step(tmp_path: Path) -> None:
    update = frame(a=lowered(10, 11, 12), b=lowered(11, to=0.1), c=1.0)
    update.iloc[100:200] = np.nan  # a scaler skipped these updates
    found = told(tmp_path / "r", stabilizers__update=update)
    [clipped] = found.numbers["clipped"]
    values = update.to_numpy()
    assert clipped["acted"] == sum(bool((row < 1).any()) for row in values) == 3
    assert clipped["share"] == pytest.approx(4 / (3 * (STEPS - 100)))
    assert (clipped["most_often"], clipped["its_share"]) == ("a", pytest.approx(3 / (STEPS - 100)))
    assert (clipped["smallest"], clipped["smallest_in"], clipped["smallest_step"]) == (pytest.approx(0.1), "b", 11)
    assert "in at least one of 3 tensors; most often in a" in found.sentence


@pytest.mark.parametrize(("every", "said"), [(1, True), (3, False)])
def test_what_acts_all_the_time_is_no_guard(tmp_path: Path, every: int, said: bool) -> None:
    found = told(tmp_path / "r", gradients__clip=frame(coefficient=lowered(*range(0, STEPS, every))))
    assert ("So often it scales the training as a whole" in found.sentence) is said
    assert found.sentence.startswith("Clipping to the norm that the loop names acted")


def test_spikes_after_resets_are_counted_beside_chance(tmp_path: Path) -> None:
    reset = frame(moments=0.0)
    reset.iloc[[398, 700, 900]] = 1.0
    found = told(tmp_path / "r", stabilizers__reset=reset)
    assert (found.numbers["resets"], found.numbers["after_reset"]) == (3, 2)
    assert found.numbers["after_reset_by_chance"] == pytest.approx(4 * 3 * 11 / STEPS)
    assert "forgotten 3 times; 2 of 4 gradient spikes begin within 10 steps after that" in found.sentence


def test_a_training_tells_what_its_stabilizers_did(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"stabilize__clip": "layer", "stabilize__threshold": 1e-3, "stabilize__stem_clip": 1e-4}
    settings |= {"stabilize__reset_every": 5, "optimizer__name": "stableadamw", "train__steps": 12}
    _, run = go(tmp_path / "r", **settings, schedule__warmup_steps=0)
    analysis = analyze(run)
    [found] = [each for each in analysis.findings if each.kind == "stabilizers"]
    layers, first, update = (run[f"stabilizers.{name}"] for name in ("coefficient", "first_layer", "update"))
    assert [each["acted"] for each in found.numbers["clipped"]] == [
        int((each < 1).any(axis=1).sum()) for each in (layers, first, update)
    ]
    assert len(update) == 12
    assert found.numbers["resets"] == 2
    content = {"schema": 2, "run": "r", "parameters": {}, "findings": [found], "episodes": []}
    jsonschema.Draft202012Validator(findings_schema()).validate(to_json(content))
