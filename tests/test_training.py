"""Truth: bit-identical twins (two equal runs, an interrupted one and a whole one), and timm's own model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from stabilitylab import InputError, Run, plugins
from stabilitylab.training import checkpoint as checkpoints
from stabilitylab.training.command import run as run_command
from stabilitylab.training.config import Config, resolve
from stabilitylab.training.data import open_dataset
from stabilitylab.training.distributed import process_group
from stabilitylab.training.loop import Outcome, prepare, train

TINY = {
    "data.batch_size": 32,
    "data.bank_images": 100,
    "data.held_out_images": 60,
    "model.dim": 32,
    "model.depth": 2,
    "method.hidden": 32,
    "method.dim": 16,
    "train.steps": 24,
    "schedule.warmup_steps": 4,
    "probes.knn.every": 4,
    "probes.spectrum.every": 8,
    "checkpoint.every": 10,
    "train.device": "cpu",
}


class Quiet:
    """A reporter that remembers, and may act at a step."""

    def __init__(self, act: Mapping[int, Any] | None = None) -> None:
        self.act = act or {}
        self.numbers: list[dict[str, float]] = []

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        self.numbers.append(dict(numbers))
        if step in self.act:
            self.act[step]()


def go(out: Path, reporter: Quiet | None = None, resume: bool = False, **settings: Any) -> tuple[Outcome, Run]:
    config: Config = resolve("digits", TINY, {name.replace("__", "."): value for name, value in settings.items()})
    with process_group("cpu") as ranks:
        setup = prepare(config, open_dataset(config.data), ranks, resumed=resume)
        outcome = train(setup, out, reporter or Quiet(), checkpoints.latest(out) if resume else None)
    return outcome, Run(out)


def assert_equal(run: Run, other: Run) -> None:
    assert run.series == other.series
    for series in run.series:
        if not run.about(series).get("wall_clock"):
            assert list(run[series].index) == list(other[series].index), series
            np.testing.assert_array_equal(run[series].to_numpy(), other[series].to_numpy(), err_msg=series)


def test_a_run_holds_what_the_design_says(tmp_path: Path) -> None:
    reporter = Quiet()
    outcome, run = go(tmp_path / "r", reporter)
    assert (outcome.status, outcome.steps, run.status) == ("completed", 24, "completed")
    assert {
        "training.loss",
        "training.lr",
        "training.momentum",
        "gradients.norm",
        "gradients.max",
        "updates.ratio",
    } <= set(run.series)
    assert {"knn.accuracy", "spectrum.representation", "spectrum.projection", "spectrum.rank"} <= set(run.series)
    assert list(run["gradients.norm"].index) == list(range(24))
    assert list(run["updates.ratio"].index) == list(range(24))
    assert list(run["knn.accuracy"].index) == list(range(0, 24, 4))
    layers = ("patch_embed", "tokens", "blocks.0", "blocks.1", "norm", "projector", "predictor")
    assert run.layers.names == layers
    assert not any("momentum" in name for name in run["gradients.norm"].columns)
    np.testing.assert_allclose(run["training.loss"]["loss"], [each["loss"] for each in reporter.numbers], rtol=1e-6)
    rates = run["training.lr"]["lr"].to_numpy()
    assert rates[0] == 0
    assert rates[4] == rates.max() == 8e-3
    assert run.header["versions"]["torch"] == torch.__version__.split("+")[0]
    assert run.header["seed"] == 0
    assert resolve("digits", TINY).to_json() == run.config
    assert run["training.momentum"]["momentum"].iloc[0] == pytest.approx(0.99)


def test_the_same_seed_gives_the_same_run_bit_for_bit_and_another_one_does_not(tmp_path: Path) -> None:
    _, first = go(tmp_path / "a")
    _, second = go(tmp_path / "b")
    assert_equal(first, second)
    _, other = go(tmp_path / "c", train__seed=1)
    assert not np.array_equal(first["training.loss"], other["training.loss"])


def test_probes_do_not_change_the_training(tmp_path: Path) -> None:
    _, whole = go(tmp_path / "a")
    off = {f"probes__{name}": False for name in plugins.names("probes") if name != "training"}
    _, bare = go(tmp_path / "b", **off)
    assert bare.series == ("training.images_per_second", "training.loss", "training.lr", "training.momentum")
    np.testing.assert_array_equal(whole["training.loss"].to_numpy(), bare["training.loss"].to_numpy())
    last = "checkpoints/00000024/model.safetensors"
    assert (tmp_path / "a" / last).read_bytes() == (tmp_path / "b" / last).read_bytes()


@pytest.mark.parametrize(
    ("optimizer", "stabilize"),
    [
        ("adamw", {}),
        ("lamb", {"reset_every": 6, "reset_warmup": 3}),
        ("lars", {}),
        ("sgd", {"clip": "agc"}),
        ("stableadamw", {"clip": "zclip", "zclip_warmup": 5, "threshold": 0.5}),
        ("muon", {"reset_every": 6, "reset_warmup": 3}),
    ],
    ids=lambda each: each if isinstance(each, str) else "-".join(each),
)
def test_resuming_an_interrupted_run_gives_the_series_of_a_whole_one(
    tmp_path: Path, optimizer: str, stabilize: dict[str, Any]
) -> None:
    settings = {"optimizer__name": optimizer, "model__drop_path": 0.2}
    settings |= {f"stabilize__{name}": value for name, value in stabilize.items()}
    _, whole = go(tmp_path / "whole", **settings)
    stop = {14: lambda: os.kill(os.getpid(), signal.SIGTERM)}
    outcome, run = go(tmp_path / "parts", Quiet(stop), **settings)
    assert (outcome.status, outcome.signal, run.status) == ("interrupted", signal.SIGTERM, "interrupted")
    outcome, run = go(tmp_path / "parts", resume=True, **settings)
    assert outcome.status == "completed"
    assert [each["status"] for each in run.header["attempts"]] == ["interrupted", "completed"]
    assert_equal(whole, run)
    last = "checkpoints/00000024/model.safetensors"
    assert (tmp_path / "whole" / last).read_bytes() == (tmp_path / "parts" / last).read_bytes()


def test_resuming_after_a_crash_goes_back_to_the_last_checkpoint(tmp_path: Path) -> None:
    def crash() -> None:
        raise RuntimeError("power cut")

    _, whole = go(tmp_path / "whole")
    with pytest.raises(RuntimeError):
        go(tmp_path / "parts", Quiet({17: crash}))
    run = Run(tmp_path / "parts")
    assert (run.status, run.header["attempts"][0]["message"]) == ("failed", "RuntimeError: power cut")
    assert len(run["gradients.norm"]) == 18
    _, run = go(tmp_path / "parts", resume=True)
    assert run.header["attempts"][1]["first_step"] == 10
    assert_equal(whole, run)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=1024.0))
    _, full = go(tmp_path / "full", train__steps=6)
    _, half = go(tmp_path / "half", train__steps=6, train__precision=precision)
    weight = "backbone.patch_embed.proj.weight"
    # unscaled: of the size of the full ones, not 1024 times as large
    ratio = half["gradients.norm"][weight] / full["gradients.norm"][weight]
    assert ratio.median() == pytest.approx(1, abs=0.5)
    assert half["training.loss"]["loss"].iloc[0] == pytest.approx(full["training.loss"]["loss"].iloc[0], rel=0.02)


def test_a_step_whose_gradients_overflow_is_recorded_and_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**60))
    _, run = go(tmp_path / "r", train__steps=6, train__precision="fp16")
    weight = "backbone.patch_embed.proj.weight"
    assert not np.isfinite(run["gradients.norm"][weight]).any()
    assert (run["updates.ratio"][weight] == 0).all()
    assert np.isfinite(run["training.loss"]).all(axis=None)


@pytest.mark.parametrize(
    "settings",
    [
        {"model.patch_projection": "frozen"},
        {"model.positions": "learned"},
        {"model.positions": "none"},
        {"model.pooling": "avg"},
        {"model.stem": "convolutional"},
        {"method.batch_norm": False},
        {"method.predictor_layers": 0},
        {"method.momentum": 0.9, "method.momentum_schedule": "constant"},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values()),
)
def test_every_switch(tmp_path: Path, settings: dict[str, Any]) -> None:
    outcome, run = go(
        tmp_path / "r", **{name.replace(".", "__"): value for name, value in settings.items()}, train__steps=4
    )
    assert outcome.status == "completed"
    frozen = settings.get("model.patch_projection") == "frozen"
    projection = [name for name in run["gradients.norm"].columns if "patch_embed" in name]
    assert (projection == []) is frozen
    weight = "backbone.patch_embed.proj.weight"
    if frozen:
        torch.manual_seed(0)
        config = resolve("digits", TINY, settings)
        with process_group("cpu") as ranks:
            untrained = prepare(config, open_dataset(config.data), ranks).method.state_dict()[weight]
        trained = load_file(tmp_path / "r/checkpoints/00000004/model.safetensors")[weight]
        torch.testing.assert_close(trained, untrained, rtol=0, atol=0)


@pytest.mark.parametrize("preset", ["moco-v3-vit-s", "moco-v3-vit-b"])
def test_the_published_recipes_run_a_step(tmp_path: Path, preset: str) -> None:
    config = resolve(
        preset,
        {"data.batch_size": 2, "data.image_size": 32, "model.patch_size": 16, "train.steps": 1, "probes.knn.k": 1},
        {"schedule.warmup_steps": 0, "data.bank_images": 4, "data.held_out_images": 2, "probes.spectrum": False},
        {"model.depth": 2} if preset.endswith("b") else {},  # its 12 blocks are wider, and otherwise those of ViT-S
    )
    with process_group("cpu") as ranks:
        setup = prepare(config, open_dataset(config.data), ranks)
        assert train(setup, tmp_path / "r", Quiet()).status == "completed"


# ---- checkpoints


def test_a_damaged_checkpoint_is_named_before_anything_is_removed(tmp_path: Path) -> None:
    go(tmp_path / "r", checkpoint__keep=0)
    shutil.rmtree(tmp_path / "r/checkpoints/00000024")
    last = tmp_path / "r/checkpoints/00000020"
    state = json.loads((last / "state.json").read_text())
    state["optimizer"]["param_groups"] = []
    for name, content, message in (
        ("state.json", json.dumps(state).encode(), "00000020 does not fit the configuration"),
        ("model.safetensors", (last / "backbone.safetensors").read_bytes(), "00000020 does not fit the configuration"),
        ("model.safetensors", b"torn", "00000020 is damaged: .*; remove it to go on from 00000010"),
    ):
        kept = (last / name).read_bytes()
        (last / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            go(tmp_path / "r", resume=True)
        (last / name).write_bytes(kept)
    run = Run(tmp_path / "r")
    assert len(run["gradients.norm"]) == 24
    assert [each["status"] for each in run.header["attempts"]] == ["completed"]
    with pytest.raises(InputError, match="holds no checkpoint"):
        checkpoints.latest(tmp_path)


# ---- what goes wrong


def test_a_loss_that_is_not_finite_ends_the_run_with_its_evidence(tmp_path: Path) -> None:
    outcome, run = go(tmp_path / "r", optimizer__name="sgd", optimizer__lr=1e30, schedule__warmup_steps=2)
    assert (outcome.status, run.status) == ("failed", "failed")
    loss = run["training.loss"]["loss"]
    assert not np.isfinite(loss.iloc[-1])
    assert np.isfinite(loss.iloc[:-1]).all()
    assert f"at step {loss.index[-1]}; first not finite: the output of " in outcome.message
    assert len(run["gradients.norm"]) == len(loss)
    assert run.header["attempts"][0]["message"] == outcome.message


def test_unless_told_to_go_on(tmp_path: Path) -> None:
    settings = {"optimizer__name": "sgd", "optimizer__lr": 1e30, "train__nonfinite": "continue"}
    outcome, run = go(tmp_path / "r", **settings)
    assert outcome.status == "completed"
    assert len(run["training.loss"]) == 24
    assert not np.isfinite(run["training.loss"]["loss"].iloc[-1])


def test_the_first_layer_that_is_not_finite_is_named(tmp_path: Path) -> None:
    config = resolve("digits", TINY)
    with process_group("cpu") as ranks:
        setup = prepare(config, open_dataset(config.data), ranks)

    def poison() -> None:
        with torch.no_grad():  # finite weights whose product is not
            dict(setup.method.named_parameters())["backbone.blocks.1.mlp.fc2.weight"].fill_(3e38)

    outcome = train(setup, tmp_path / "r", Quiet({7: poison}))
    assert outcome.status == "failed"
    assert outcome.message.endswith("at step 8; first not finite: the output of backbone.blocks.1.mlp.fc2")


# ---- as a process


def command(out: Path, *words: str) -> list[str]:
    settings = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
    return [sys.executable, "-m", "stabilitylab", "train", *settings, "--out", str(out), *words]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_cleanly_and_it_can_go_on(tmp_path: Path, number: signal.Signals) -> None:
    words = ["--set", "train.steps=100000", "--set", "checkpoint.every=0"]
    with subprocess.Popen(
        command(tmp_path / "r", *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        until = time.monotonic() + 240
        while not list((tmp_path / "r").glob("series/training.loss/*.parquet")):
            assert time.monotonic() < until
            assert run.poll() is None
            time.sleep(0.1)
        run.send_signal(number)
        out, error = run.communicate()
    assert run.returncode == 128 + number
    assert "Traceback" not in error
    assert f"interrupted: {number.name} after" in out
    assert f"stabilitylab train --resume {tmp_path / 'r'}" in out
    found = Run(tmp_path / "r")
    assert found.status == "interrupted"
    assert checkpoints.latest(tmp_path / "r").step == len(found["training.loss"]) == len(found["updates.ratio"])


KILLED = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from test_training import Quiet, go

    class Telling(Quiet):
        def step(self, step, numbers):
            print(step, flush=True)

    go(Path(sys.argv[1]), Telling(), train__steps=100_000, checkpoint__every=0)
"""


def test_a_kill_loses_at_most_the_last_buffer(tmp_path: Path) -> None:
    code = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "r"), str(Path(__file__).parent)]
    with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if int(line) >= 130:
                run.kill()
                break
        reached = int((line + run.stdout.read()).split()[-1])
    found = Run(tmp_path / "r")
    assert found.status == "killed"
    rows = len(found["gradients.norm"])
    assert list(found["gradients.norm"].index) == list(range(rows))
    assert reached - 50 <= rows <= reached + 2  # the buffer holds at most 50 steps


def test_two_processes_record_what_one_does(tmp_path: Path) -> None:
    words = ["--set", "train.steps=8"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    alone, together = command(tmp_path / "one", *words), command(tmp_path / "two", *words)
    subprocess.run(alone, check=True, capture_output=True)
    done = subprocess.run([*torchrun, *together[1:]], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = Run(tmp_path / "one"), Run(tmp_path / "two")
    assert (two.status, two.about("gradients.norm")["ranks"]) == ("completed", 2)
    # the global batch, its statistics and its keys are the same: only the order of sums differs
    for series, tolerance in (("training.loss", 1e-4), ("gradients.norm", 1e-2)):
        np.testing.assert_allclose(two[series].iloc[:2], one[series].iloc[:2], rtol=tolerance, atol=1e-5)
    np.testing.assert_allclose(two["training.loss"], one["training.loss"], rtol=2e-2)


def test_a_folder_without_classes_trains_with_a_spectrum_and_no_accuracy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(80):
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
    settings = {"data__path": str(tmp_path), "data__image_size": 16, "data__channels": 3, "model__patch_size": 8}
    outcome, run = go(tmp_path / "r", **settings, data__workers=0, train__steps=4, schedule__warmup_steps=1)
    assert outcome.status == "completed"
    assert "spectrum.rank" in run
    assert "knn.accuracy" not in run


def test_errors_come_before_anything_is_written(tmp_path: Path) -> None:
    config = resolve("digits", TINY, {"data.batch_size": 4096})
    with pytest.raises(InputError, match="fewer than one batch"):
        run_command(config, tmp_path / "r", None, tmp_path)
    assert not (tmp_path / "r").exists()
