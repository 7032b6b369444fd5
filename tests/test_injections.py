"""Truth: what was planted, twins without it that are equal bit for bit until then, and p-values of pure noise."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import lfilter
from test_training import TINY, Quiet, assert_equal, go

from stabilitylab import InputError, Run, analyze
from stabilitylab.episodes import layer_magnitudes
from stabilitylab.findings import Finding
from stabilitylab.phrasing import occasions
from stabilitylab.run import RunWriter
from stabilitylab.settings import parse_settings, read_file
from stabilitylab.stats.response import respond
from stabilitylab.training.config import resolve
from stabilitylab.training.data import open_dataset
from stabilitylab.training.distributed import Ranks, process_group
from stabilitylab.training.injections.batch import Batch
from stabilitylab.training.injections.injection import Injection
from stabilitylab.training.loop import prepare

WITHOUT = ("activations", "attention", "adam", "weights", "alignment", "batch", "method")
LEAN: dict[str, Any] = {f"probes__{name}": False for name in WITHOUT} | {
    "probes__teacher__every": 1, "probes__spectrum__every": 8, "probes__spectrum__blocks": False,
    "probes__knn__every": 40,
}  # fmt: skip
LONG: dict[str, Any] = LEAN | {
    "train__steps": 330, "checkpoint__every": 0, "schedule__name": "constant", "optimizer__lr": 2e-3,
    "method__momentum": 0.9, "method__momentum_schedule": "constant",
}  # fmt: skip


def planted(run: Run) -> list[Finding]:
    return [each for each in analyze(run).findings if each.kind == "planted"]


def responds(finding: Finding, series: str) -> dict[str, dict[str, Any]]:
    rows = finding.numbers["responses"]
    return {each["label"]: each for each in rows if each["series"] == series and each["responds"]}


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return go(tmp_path_factory.mktemp("twin") / "r", **LEAN)[1]


@pytest.mark.slow
def test_each_kind_is_found_where_it_was_planted_and_each_layer_reported(tmp_path: Path) -> None:
    times = {"step": 80, "every": 20, "until": 120}
    inject = [
        {"kind": "gradient", "layer": "blocks.1", "factor": 30, **times},
        {"kind": "momentum_encoder", "step": 190, "steps": 15},
        {"kind": "batch", "images": "contrast", "step": 220},
        {"kind": "batch", "images": "repeated", "step": 240},
        {"kind": "batch", "images": "noise", "step": 260},
        {"kind": "learning_rate", "factor": 10, "step": 280, "steps": 3},
        {"kind": "projection", "dimensions": [1, 5, 6], "step": 300},
    ]
    run = go(tmp_path / "r", inject=inject, **LONG)[1]
    gradient, frozen, contrast, repeated, noise, rate, killed = planted(run)
    assert [each["kind"] for each in run.planted] == [each["kind"] for each in inject]
    assert run.planted[0]["spans"] == [[step, step] for step in (80, 100, 120)]
    assert run.planted[6]["spans"] == [[300, 329]]

    assert gradient.verdict == "all found"
    assert [each["at"] for each in gradient.numbers["times"]] == [80, 100, 120]
    layer = responds(gradient, "gradients.norm")
    assert layer["blocks.1"]["change"] == pytest.approx(30, rel=0.5)
    assert layer["blocks.1"]["lag"] == 0
    assert {each["label"] for each in gradient.numbers["responses"] if each["series"] == "gradients.norm"} == {
        *run.layers.names
    }
    # Contrast does little here: layer norms take it out, and in two of six seeds it stands out of the noise.
    assert ("missed at step 220" in contrast.sentence) == (contrast.verdict == "none found")
    assert contrast.verdict in ("all found", "none found")
    found = ((frozen, 190, 0), (repeated, 240, 1), (noise, 260, 1), (rate, 280, 2), (killed, 300, 8))
    for finding, first, late in found:
        assert finding.verdict == "all found", finding.sentence
        (time,) = finding.numbers["times"]
        assert time["start"] == first
        assert first <= time["at"] <= first + late, finding.sentence
        rows = [each for each in finding.numbers["responses"] if each["series"] == "gradients.norm"]
        assert [each["label"] for each in rows] == list(run.layers.names)  # measured, if not told from chance
    changes = {each["label"]: each["change"] for each in rate.numbers["responses"] if each["series"] == "updates.ratio"}
    assert np.median(list(changes.values())) == pytest.approx(10, rel=0.5)
    assert "a momentum of 1" in frozen.sentence
    assert "3 directions without variance" in killed.sentence


def test_a_twin_is_equal_until_then_and_differs_by_exactly_what_was_planted(tmp_path: Path, twin: Run) -> None:
    inject = [
        {"kind": "gradient", "layer": "patch_embed", "factor": 8, "step": 9},
        {"kind": "learning_rate", "factor": 4, "step": 9},
        {"kind": "momentum_encoder", "step": 11, "steps": 2},
        {"kind": "projection", "dimensions": [0, 3], "step": 16},
    ]
    run = go(tmp_path / "r", inject=inject, **LEAN)[1]
    ours, theirs = layer_magnitudes(run), layer_magnitudes(twin)
    np.testing.assert_array_equal(ours.loc[:8], theirs.loc[:8])
    np.testing.assert_array_equal(run["training.loss"].loc[:8], twin["training.loss"].loc[:8])
    np.testing.assert_array_equal(ours.loc[9].drop("patch_embed"), theirs.loc[9].drop("patch_embed"))
    assert ours.loc[9, "patch_embed"] == 8 * theirs.loc[9, "patch_embed"]  # a power of two: exact in floating point
    assert run["training.loss"].loc[10, "loss"] != twin["training.loss"].loc[10, "loss"]
    rates = (run["training.lr"] / twin["training.lr"])["lr"].drop(0)
    assert rates[9] == 4
    assert (rates.drop(9) == 1).all()
    momentum = run["training.momentum"]["momentum"]
    assert list(momentum.index[momentum == 1]) == [11, 12]
    vanished = (run["spectrum.projection"] < 1e-12).sum(axis=1)
    assert dict(vanished) == {0: 0, 8: 0, 16: 2}
    assert run.header["self_check"]["mistake"] == "passed"


def test_no_injection_changes_nothing_and_tells_nothing(tmp_path: Path, twin: Run) -> None:
    run = go(tmp_path / "r", inject=[], **LEAN)[1]
    assert_equal(run, twin)
    assert "planted" not in run.header
    assert run.config["inject"] == []
    assert planted(run) == []


def test_a_poisoned_batch_is_what_its_kind_says(tmp_path: Path, twin: Run) -> None:
    views = (torch.arange(48.0).reshape(4, 1, 3, 4), torch.arange(48.0).reshape(4, 1, 3, 4).sin())
    training: Any = SimpleNamespace(seed=3, step=7, ranks=Ranks(0, 1, torch.device("cpu")))
    made = {images: Batch(step=7, images=images).views(views, training) for images in ("noise", "contrast", "repeated")}
    for view, contrast, repeated in zip(views, made["contrast"], made["repeated"], strict=True):
        assert torch.equal(contrast, 10 * view)
        assert torch.equal(repeated, view[:1].repeat(4, 1, 1, 1))
    again = Batch(step=7).views(views, training)
    assert all(torch.equal(*pair) for pair in zip(again, made["noise"], strict=True))
    large = (torch.zeros(64, 1, 16, 16),) * 2
    noise, other = Batch(step=7).views(large, training)
    assert (abs(float(noise.mean())), float(noise.std())) == pytest.approx((0, 1), abs=0.03)
    assert abs(float((noise * other).mean())) < 0.03

    run = go(tmp_path / "r", inject={"kind": "batch", "images": "contrast", "step": 14}, **LEAN)[1]
    same = (run["training.loss"] == twin["training.loss"])["loss"]
    assert same.loc[:13].all()
    assert not same.loc[14:].any()


def test_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path: Path) -> None:
    inject = [
        {"kind": "momentum_encoder", "step": 7, "steps": 9},
        {"kind": "projection", "step": 9, "dimensions": [2]},
        {"kind": "batch", "step": 5, "every": 6},
        {"kind": "gradient", "layer": "norm", "step": 3, "every": 4, "factor": 0.1},
    ]
    _, whole = go(tmp_path / "whole", inject=inject, **LEAN)
    stop = {12: lambda: os.kill(os.getpid(), signal.SIGTERM)}
    assert go(tmp_path / "parts", Quiet(stop), inject=inject, **LEAN)[0].status == "interrupted"
    _, run = go(tmp_path / "parts", resume=True, inject=inject, **LEAN)
    assert_equal(whole, run)
    assert run.planted == whole.planted


def test_the_forms_of_the_setting(tmp_path: Path) -> None:
    listed = parse_settings(['inject=[{kind="gradient", layer="norm", step=3, factor=50}]'])
    short = parse_settings(["inject.kind=gradient", "inject.layer=norm", "inject.step=3", "inject.factor=50"])
    file = tmp_path / "one.toml"
    file.write_text('[[inject]]\nkind = "gradient"\nlayer = "norm"\nstep = 3\nfactor = 50\n')
    first, *others = (resolve("digits", TINY, each) for each in (listed, short, read_file(file)))
    assert all(each == first for each in others)
    assert len(first.inject) == 1
    assert resolve("digits", TINY, listed, {"inject": []}).inject == ()
    assert resolve("digits", json.loads(json.dumps({"inject": first.to_json()["inject"]}))).inject == first.inject


@pytest.mark.parametrize(
    ("inject", "message"),
    [
        ({"kind": "gradien", "step": 3}, r"inject.kind was 'gradien'; the kinds are gradient, batch, learning_rate"),
        ({"step": 3}, r"inject.kind is missing; the kinds are"),
        ("gradient", r"inject is a list of tables such as .* it was 'gradient'"),
        ([3], r"inject\[0\] is a table with a kind; it was 3"),
        ([{"kind": "batch"}], r"inject\[0\].step is missing; a batch has kind, step, steps, every, until, images"),
        ([{"kind": "batch", "step": 1, "imags": "noise"}], r"inject\[0\].imags is not known"),
        ([{"kind": "batch", "step": 3, "steps": 5, "every": 5}], r"every is 5; it must be more than steps, which is 5"),
        ([{"kind": "gradient", "layer": "blocks.9", "step": 1}], r"'blocks.9', which is no layer; available: patch_em"),
        ([{"kind": "batch", "step": 1}, {"kind": "batch", "step": 24}], r"inject\[1\].step is 24; the training has 24"),
        ([{"kind": "projection", "step": 1, "dimensions": [16]}], r"holds 16; the projection has 16 dimensions, 0 to"),
    ],
)
def test_what_cannot_be_planted_is_refused_by_name(inject: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(inject=inject)


def test_what_a_method_or_model_does_not_have_cannot_be_disturbed() -> None:
    with pytest.raises(InputError, match=r"inject\[0\]: the method simclr has no momentum encoder"):
        plan({"method.name": "simclr"}, inject=[{"kind": "momentum_encoder", "step": 1}])
    with pytest.raises(InputError, match=r"'patch_embed', which takes no gradient; available: tokens, blocks.0"):
        plan({"model.patch_projection": "frozen"}, inject=[{"kind": "gradient", "layer": "patch_embed", "step": 1}])
    with pytest.raises(InputError, match="give either inject, a list, or"):
        plan({"inject.kind": "batch"}, inject=[{"kind": "batch", "step": 1}])


def plan(settings: dict[str, Any] | None = None, **inject: Any) -> None:
    config = resolve("digits", {name: value for name, value in TINY.items() if settings is None or "." in name}
                     | inject | (settings or {}))  # fmt: skip
    with process_group("cpu") as ranks:
        prepare(config, open_dataset(config.data), ranks)


@pytest.mark.parametrize("seed", range(20))
def test_when_it_is_there_and_when_it_says_so_are_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    total, step = 60, int(rng.integers(0, 40))
    steps: int | None = int(rng.integers(1, 6))
    every = int(rng.integers(6, 20)) if seed % 2 else None
    until = step + int(rng.integers(0, 80)) if every and seed % 4 == 1 else None
    if seed % 6 == 0:
        steps = None
    injection = Injection(kind="x", step=step, steps=steps, every=every, until=until)
    spans = injection.spans(total)
    inside = {at for first, last in spans for at in range(first, last + 1)}
    assert {at for at in range(total) if injection.on(at)} == inside
    assert all(0 <= first <= last < total for first, last in spans)
    assert str(spans[0][0]) in occasions(spans)


@pytest.mark.parametrize("tails", [np.inf, 2])
def test_a_response_holds_its_level_in_correlated_noise_of_any_tails(tails: float) -> None:
    rng = np.random.default_rng(0)
    found = {1: [], 4: []}  # type: dict[int, list[float]]
    for _ in range(200):
        shocks = rng.standard_normal(900) if tails == np.inf else rng.standard_t(tails, 900)
        noise = lfilter([1], [1, -0.5], shocks)
        for number, p in found.items():
            starts = [int(rng.integers(30 + 85 * at, 80 + 85 * at)) for at in range(number)]
            busy = np.zeros(900, dtype=bool)
            for start in starts:
                busy[start : start + 11] = True
            p.append(respond(noise, starts, 11, busy).p_all)
    # nothing was planted: the nominal level holds (200 trials: 0.05 and two standard errors)
    assert all(np.mean(np.array(p) <= 0.05) <= 0.08 for p in found.values())
    assert all(np.mean(np.array(p) <= 0.25) > 0.15 for p in found.values())


def test_a_response_is_that_of_its_window_in_any_unit() -> None:
    noise = np.random.default_rng(0).standard_normal(900)
    noise[202] += 12
    busy = np.zeros(900, dtype=bool)
    busy[200:211] = True
    found = respond(noise, [200], 11, busy)
    scaled = respond(1000 * noise + 7, [200], 11, busy)
    assert (found.delay[0], found.p[0]) == (2, found.p_smallest)
    assert found.p_smallest == 2 / 80  # 18 windows of 11 fit before it, the first without a level, and 62 after it
    assert scaled.deviation[0] == pytest.approx(1000 * found.deviation[0])
    assert (scaled.delay[0], scaled.p[0]) == (2, found.p[0])
    noise[202] = np.inf
    assert respond(noise, [200], 11, busy).deviation[0] == np.inf
    busy[10:15] = True
    short = respond(noise[:25], [10], 5, busy[:25])
    assert np.isnan(short.p_all)  # too short: measured, and nothing is said of chance
    assert np.isfinite(short.deviation[0])


def test_one_disturbance_is_not_credited_with_the_spike_of_another(tmp_path: Path) -> None:
    """A spike of thirty times in layer b, five steps after nothing at all."""
    rng = np.random.default_rng(1)
    starts = range(200, 800, 50)
    nothing = {"kind": "learning_rate", "what": "nothing", "spans": [[at, at] for at in starts]}
    real = {"kind": "gradient", "what": "it", "layer": "b", "spans": [[at + 5, at + 5] for at in starts]}
    header = {"layers": {"names": ["a", "b"], "of": {"a.w": "a", "b.w": "b"}, "first": "a"}, "config": {}}
    values = np.exp(0.1 * rng.standard_normal((1000, 2)))
    values[[at + 5 for at in starts], 1] *= 30
    writer = RunWriter(tmp_path / "r", header | {"planted": [nothing, real]})
    writer.declare("gradients.norm", ["a.w", "b.w"], unit="gradient")
    writer.write("gradients.norm", np.arange(1000), values)
    writer.close("completed")
    told, found = planted(Run(tmp_path / "r"))
    assert found.verdict == "all found"
    assert responds(found, "gradients.norm").keys() == {"b"}
    assert told.numbers["found"] == 0
    assert not responds(told, "gradients.norm")
    assert not told.events


def test_one_disturbance_close_to_another_leaves_the_answer_to_all_others(tmp_path: Path) -> None:
    """Layer b rises by three four steps after each of twelve times; one other is a step behind the last of them."""
    rng = np.random.default_rng(1)
    starts = range(200, 800, 50)
    values = np.exp(0.1 * rng.standard_normal((1000, 2)))
    values[[at + 4 for at in starts], 1] *= 3
    real = {"kind": "batch", "what": "it", "spans": [[at, at] for at in starts]}
    other = {"kind": "batch", "what": "another", "spans": [[starts[-1] + 1, starts[-1] + 1]]}
    header = {"layers": {"names": ["a", "b"], "of": {"a.w": "a", "b.w": "b"}, "first": "a"}, "config": {}}
    writer = RunWriter(tmp_path / "r", header | {"planted": [real, other]})
    writer.declare("gradients.norm", ["a.w", "b.w"], unit="gradient")
    writer.write("gradients.norm", np.arange(1000), values)
    writer.close("completed")
    found = planted(Run(tmp_path / "r"))[0]
    assert responds(found, "gradients.norm").keys() == {"b"}


def test_what_was_not_there_is_not_found_and_what_makes_no_sense_is_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    truth = {"kind": "gradient", "what": "nothing at all", "layer": "b", "spans": [[200, 200], [300, 300]]}
    unsound: list[Any] = [3, {"kind": "gradient"}, truth | {"spans": [[5]]}, truth | {"spans": [[9, 3]]}, {"spans": 0}]
    header = {"layers": {"names": ["a", "b"], "of": {"a.w": "a", "b.w": "b"}, "first": "a"}, "config": {}}
    writer = RunWriter(tmp_path / "r", header | {"planted": [truth, *unsound]})
    writer.declare("gradients.norm", ["a.w", "b.w"], unit="gradient")
    writer.update()
    writer.write("gradients.norm", np.arange(500), np.exp(0.1 * rng.standard_normal((500, 2))))
    writer.close("completed")
    (finding,) = planted(Run(tmp_path / "r"))
    assert finding.verdict == "none found"
    assert "missed at steps 200 and 300" in finding.sentence
    assert not any(each["responds"] for each in finding.numbers["responses"])
