"""Truth: runs of which one thing is odd by construction, and what must be said of it, or must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from stabilitylab import Analysis, Run, analyze
from stabilitylab.cli import main
from stabilitylab.findings import Finding
from stabilitylab.report.verdict import verdict
from stabilitylab.run import RunWriter
from stabilitylab.synthetic import write as synthetic_run

STEPS = 1000


def made(path: Path, gradients: np.ndarray | None = None, **series: np.ndarray) -> Analysis:
    """Return the analysis of a run with layers a, b and c, whose other series hold one column."""
    names = list("abc")[: 0 if gradients is None else gradients.shape[1]]
    layers = {"names": names, "of": {f"{name}.w": name for name in names}, "first": names[0] if names else ""}
    writer = RunWriter(path, {"layers": layers})
    if gradients is not None:
        writer.declare("gradients.norm", [f"{name}.w" for name in names])
        writer.write("gradients.norm", np.arange(len(gradients)), gradients)
    for name, values in series.items():
        label = {"training.loss": "loss", "knn.accuracy": "bank"}[name]
        every = 10 if name == "knn.accuracy" else 1
        writer.declare(name, [label])
        writer.write(name, every * np.arange(len(values)), values[:, None])
    writer.close("completed")
    return analyze(Run(path))


def quiet(seed: int = 0, steps: int = STEPS) -> np.ndarray:
    return np.exp(0.1 * np.random.default_rng(seed).standard_normal((steps, 3)))


def losses(seed: int = 0) -> np.ndarray:
    return 2 + 0.05 * np.random.default_rng(seed).standard_normal(STEPS)


def finding(analysis: Analysis, kind: str) -> Finding:
    return next(each for each in analysis.findings if each.kind == kind)


@pytest.mark.parametrize("layers", [1, 3])
def test_gradients_that_are_not_finite_from_a_step_on_are_told_and_fail_a_condition(
    tmp_path: Path, layers: int
) -> None:
    gradients = quiet()
    gradients[600:, :layers] = np.nan
    analysis = made(tmp_path / "r", gradients, **{"training.loss": losses()})
    spikes = finding(analysis, "spikes")
    assert spikes.verdict == "spikes"
    names = "a" if layers == 1 else "a, b and c"
    assert f"not finite: of {names} at 400 steps from step 600 to the end." in spikes.sentence
    assert spikes.numbers["not_finite"]["a"] == {"steps": 400, "first": 600, "last": 999}
    first = "a" if layers == 1 else "a and 2 more layers"
    assert f"the gradient of {first} not finite, first at step 600" in verdict(analysis)[0]
    asked = ["analyze", str(tmp_path / "r"), "--no-pictures", "--no-report", "--fail-on", "spikes>0"]
    assert CliRunner().invoke(main, asked).exit_code == 3


def test_layers_that_never_have_a_gradient_or_a_number_are_named(tmp_path: Path) -> None:
    gradients = quiet()
    gradients[:, 1], gradients[:, 2] = 0.0, np.nan
    spikes = finding(made(tmp_path / "r", gradients), "spikes")
    assert "exactly zero: of b at every step." in spikes.sentence
    assert "not finite: of c at 1,000 steps from step 0 to the end." in spikes.sentence
    assert "The first 40 steps only say what is usual" in spikes.sentence
    gradients[:, 2] = 0.0
    gradients[:300, 1], gradients[990, 1] = quiet()[:300, 1], np.nan
    silent = finding(made(tmp_path / "t", gradients), "spikes").numbers["silent"]
    assert silent == {"b": 300, "c": 0}
    nothing = finding(made(tmp_path / "s", np.full((STEPS, 2), np.nan)), "spikes")
    assert "No layer has enough finite gradients to look for other spikes." in nothing.sentence
    assert "no spike is sought" not in nothing.sentence


def test_a_loss_that_leaves_its_level_is_dated_apart_from_one_that_is_not_finite(tmp_path: Path) -> None:
    loss = losses()
    loss[700:] += 3
    loss[800] = np.nan
    analysis = made(tmp_path / "r", quiet(), **{"training.loss": loss})
    numbers = finding(analysis, "divergence").numbers
    assert (numbers["first"], numbers["left_level"], numbers["first_not_finite"]) == (700, 700, 800)
    loss[:] = losses()
    loss[920:] += 3  # too late to be for good
    loss[300] = np.nan
    late = made(tmp_path / "s", quiet(), **{"training.loss": loss})
    assert finding(late, "divergence").numbers["rising_since"] == 920
    assert "left its level at step 920, and was still away at the end and was not finite at 1 step" in verdict(late)[0]
    assert verdict(analysis)[0].startswith(
        "The loss left its level for good at step 700 and was not finite at 1 step, first at step 800"
    )


def test_a_spike_of_the_loss_is_not_nothing(tmp_path: Path) -> None:
    loss = losses()
    loss[500] = 1e12
    analysis = made(tmp_path / "r", quiet(), **{"training.loss": loss})
    assert verdict(analysis)[0].startswith("1 spike of the loss that came back, 5e+11x at step 500")
    constant = made(tmp_path / "s", quiet(), **{"training.loss": np.full(STEPS, 2.0)})
    assert "times its noise" not in finding(constant, "divergence").sentence
    assert verdict(constant)[0].startswith("Nothing happened")


def test_a_record_that_allows_no_judgement_is_not_one_in_which_nothing_was_found(tmp_path: Path) -> None:
    nothing: dict[str, Any] = {"training.loss": losses()[:1], "knn.accuracy": np.array([0.8])}
    short = made(tmp_path / "short", quiet(steps=1), **nothing)
    assert verdict(short)[0] == "Nothing of what the detectors look for could be judged."
    assert "divergence of the loss" in verdict(short)[2]
    broken = made(tmp_path / "broken", **{"knn.accuracy": np.full(50, np.nan)})
    assert finding(broken, "dips").sentence == "None of the 50 measurements of the kNN accuracy is finite."
    alone = made(tmp_path / "alone", **{"knn.accuracy": 0.8 + 0.005 * np.random.default_rng(0).standard_normal(60)})
    assert verdict(alone)[0] == "Nothing but the accuracy could be judged."
    out = (
        CliRunner()
        .invoke(main, ["analyze", str(tmp_path / "short"), str(tmp_path / "alone"), "--no-pictures", "--no-report"])
        .output
    )
    assert out.split("short\n")[1].startswith("- Nothing could be judged.")
    assert out.split("alone\n")[1].startswith("- Nothing found that the detectors can see.")


def test_of_layers_that_are_tallest_as_often_none_is_named(tmp_path: Path) -> None:
    synthetic_run(tmp_path / "r", layers=3, spikes=(500, 1000), heights=(20.0, 5.0, 5.0), sd=0.05)
    synthetic_run(tmp_path / "s", layers=12, spikes=(500, 1000), heights=(5.0,), height_noise=0.0, sd=0.2, seed=1)
    clear, tied = (finding(analyze(Run(tmp_path / name)), "where spikes begin") for name in "rs")
    assert clear.sentence.endswith("Tallest most often: patch_embed (2 of 2).")
    first, second = (max(tied.numbers["tallest_in"].values()), sum(tied.numbers["tallest_in"].values()))
    assert (first, second) == (1, 2)
    assert "Tallest" not in tied.sentence


@pytest.mark.parametrize(("at", "said"), [(0, True), (600, False)])
def test_directions_that_are_dead_from_the_first_spectrum_on_may_be_those_that_cannot_be_filled(
    tmp_path: Path, at: int, said: bool
) -> None:
    synthetic_run(tmp_path / "r", collapse_at=at)
    collapse = finding(analyze(Run(tmp_path / "r")), "collapse")
    assert collapse.verdict == "dimensional"
    assert ("cannot fill look the same" in collapse.sentence) == said
