"""Truth: the page of the adapters as it is printed; a plain PyTorch loop recorded by the plain Recorder."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from adapter_page import examples, names
from plain_twin import BATCH, EPOCHS, PROBES, Model, assert_equal, loader, optimizer_of, plain, schedule_of

from stabilitylab import Recorder, Run

QUIET = [
    "ignore:The 'train_dataloader' does not have many workers",
    "ignore:The number of training batches .* is smaller than the logging interval",
    "ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning",
]
MANY_PROCESSES = ("DistributedDataParallel", "FSDP2")


# ---- the page


@pytest.mark.parametrize("title", [each for each in examples() if each not in MANY_PROCESSES])
@pytest.mark.filterwarnings(*QUIET)
def test_an_example_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, title: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # no compiler needed
    AcceleratorState._reset_state(reset_partial_state=True)
    exec(compile(examples()[title], f"docs/adapters.md: {title}", "exec"), names())
    (folder,) = (tmp_path / "runs").iterdir()
    run = Run(folder)
    assert run.status == "completed"
    assert run.header["self_check"]["mistake"] == "passed"
    assert {"gradients.norm", "training.loss", "training.lr"} <= set(run.series)
    assert list(run["gradients.norm"].index) == list(range(len(run["gradients.norm"])))


def test_the_page_has_every_loop() -> None:
    assert list(examples()) == [
        "A plain loop",
        "Automatic mixed precision",
        "Accumulated gradients",
        "DistributedDataParallel",
        "FSDP2",
        "torch.compile",
        "Accelerate",
        "Lightning",
        "The Trainer of Hugging Face",
    ]


# ---- Accelerate


def accelerated(path: Path, accumulate: int, max_norm: float | None, precision: str, scaler: Any = None) -> Run:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate, mixed_precision=precision)
    if scaler is not None:  # Accelerate has none for a CPU
        accelerator.scaler, accelerator.native_amp = scaler, True
    model = Model()
    optimizer = optimizer_of(model)
    schedule = schedule_of(optimizer)
    model, optimizer, batches = accelerator.prepare(model, optimizer, loader())
    total = torch.zeros(())
    with Recorder(path, model, optimizer, scaler=accelerator.scaler, probes=PROBES) as recorder:
        for batch in (batch for _ in range(EPOCHS) for batch in batches):
            with accelerator.accumulate(model):
                loss = model(**batch)["loss"]
                accelerator.backward(loss)
                total = total + loss.detach() / accumulate
                if accelerator.sync_gradients:
                    recorder.step(total, max_norm=max_norm)
                    if max_norm is not None:
                        accelerator.clip_grad_norm_(model.parameters(), max_norm)
                    total = torch.zeros(())
                optimizer.step()
                if accelerator.sync_gradients:
                    schedule.step()
                optimizer.zero_grad()
    return Run(path)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("max_norm", [None, 0.2])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(tmp_path: Path, accumulate: int, max_norm: float | None, precision: str) -> None:
    run = accelerated(tmp_path / "r", accumulate, max_norm, precision)
    half = partial(torch.autocast, "cpu", dtype=torch.bfloat16, enabled=precision == "bf16")
    options = {"accumulate": accumulate, "max_norm": max_norm, "divisor": lambda _: accumulate}
    assert_equal(run, plain(tmp_path / "plain", precision=half, **options))


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step...")  # the first steps overflow
@pytest.mark.parametrize("max_norm", [None, 0.2])
def test_accelerate_with_float16(tmp_path: Path, max_norm: float | None) -> None:
    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=4)

    run = accelerated(tmp_path / "r", 2, max_norm, "fp16", scaler())
    half = partial(torch.autocast, "cpu", dtype=torch.float16)
    options = {"accumulate": 2, "max_norm": max_norm, "divisor": lambda _: 2}
    assert_equal(run, plain(tmp_path / "plain", precision=half, scaler=scaler(), **options))
    assert not np.isfinite(run["gradients.total"]["total"]).all()


# ---- two processes


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes ran `two_adapters.py`."""
    folder = tmp_path_factory.mktemp("pair")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("two_adapters.py")
    told = subprocess.run([*command, script, folder], capture_output=True, text=True, env=os.environ, timeout=300)
    assert told.returncode == 0, told.stderr
    return folder / "runs"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp2", "lightning", "trainer"])
def test_two_processes_record_the_gradients_of_both(pair: Path, tmp_path: Path, name: str) -> None:
    run = Run(pair / name)
    adapted = name in ("lightning", "trainer")
    expected = plain(
        tmp_path / "plain", batch=2 * BATCH, **({"max_norm": 0.2} if adapted else {"lr": 1e-3, "decay": 1.0})
    )
    assert run.status == "completed"
    assert run.header["self_check"]["mistake"] == "passed"
    if adapted:
        assert "The gradients of 2 ranks were equal" in run.header["self_check"]["sentence"]
    rows = 2 if name == "trainer" else len(run["gradients.norm"])  # Accelerate fills up the last batch of an epoch
    norms, whole = (each["gradients.norm"].to_numpy()[:rows] for each in (run, expected))
    np.testing.assert_allclose(norms, whole, rtol=1e-5)
    assert list(run["gradients.norm"].index) == list(range(len(run["gradients.norm"])))
