"""Truth: a plain PyTorch loop with the same seed, data and model, recorded by the plain Recorder."""

from __future__ import annotations

import gc
import importlib
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_twin import BATCH, EPOCHS, LOADED, PROBES, Model, Samples, assert_equal, optimizer_of, plain, schedule_of
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from stabilitylab import InputError, Run
from stabilitylab.adapters.huggingface import RecorderCallback


class InOrder(Trainer):
    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def trainer(folder: Path, *callbacks: Any, kind: type[Trainer] = InOrder, model: Any = None, **options: Any) -> Trainer:
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False}
    options = {"save_strategy": "no", "logging_steps": 2, "num_train_epochs": EPOCHS, "max_grad_norm": 0.0, **options}
    arguments = TrainingArguments(str(folder / "out"), per_device_train_batch_size=BATCH, **quiet, **options)
    model = model or Model()
    optimizer = optimizer_of(model)
    both = (optimizer, schedule_of(optimizer))
    return kind(model, arguments, train_dataset=Samples(), optimizers=both, callbacks=list(callbacks))


def recording(path: Path, **options: Any) -> RecorderCallback:
    return RecorderCallback(path, probes=PROBES, **options)


def train(folder: Path, **options: Any) -> Run:
    trainer(folder, recording(folder / "r"), **options).train()
    return Run(folder / "r")


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_the_series_of_a_plain_loop(tmp_path: Path, accumulate: int, clip: float) -> None:
    run = train(tmp_path, gradient_accumulation_steps=accumulate, max_grad_norm=clip)
    assert_equal(run, plain(tmp_path / "plain", accumulate=accumulate, max_norm=clip or None))
    assert ("gradients.clip" in run) == (clip > 0)
    assert run.header["seed"] == 42


def test_bfloat16(tmp_path: Path) -> None:
    run = train(tmp_path, bf16=True, max_grad_norm=0.2)
    half = torch.autocast("cpu", dtype=torch.bfloat16)
    assert_equal(run, plain(tmp_path / "plain", max_norm=0.2, precision=lambda: half))


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step...")
@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_float16_with_steps_that_overflow(tmp_path: Path, clip: float) -> None:
    """Accelerate has no scaler for a CPU: the test gives it one."""

    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=4)

    one = trainer(tmp_path, recording(tmp_path / "r"), fp16=True, max_grad_norm=clip)
    one.accelerator.scaler, one.accelerator.native_amp = scaler(), True
    one.train()
    run = Run(tmp_path / "r")
    assert not np.isfinite(run["gradients.total"]["total"]).all()
    assert len(set(run["training.scale"]["scale"])) > 2
    half = torch.autocast("cpu", dtype=torch.float16)
    expected = plain(tmp_path / "plain", max_norm=clip or None, precision=lambda: half, scaler=scaler(), skipping=True)
    assert_equal(run, expected)


def test_the_training_is_the_same_without(tmp_path: Path) -> None:
    ends = []
    for callbacks in ([], [recording(tmp_path / "r")]):
        one = trainer(tmp_path, *callbacks, gradient_accumulation_steps=2, max_grad_norm=0.2)
        told = one.train()
        assert "training_step" not in vars(one)
        assert "clip_grad_norm_" not in vars(one.accelerator)
        logs = [
            {k: v for k, v in log.items() if "per_second" not in k and "runtime" not in k}
            for log in one.state.log_history
        ]
        ends.append(([*one.model.parameters(), torch.get_rng_state()], logs, told.training_loss))
    (weights, *others), (weights_with, *others_with) = ends
    assert all(torch.equal(a, b) for a, b in zip(weights, weights_with, strict=True))
    assert others == others_with


def test_training_from_a_checkpoint_continues_the_run(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", gradient_accumulation_steps=4, max_grad_norm=0.2)
    options = {"gradient_accumulation_steps": 4, "max_grad_norm": 0.2, "save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path, recording(tmp_path / "r"), max_steps=5, **options).train()
    trainer(tmp_path, recording(tmp_path / "r"), **options).train(str(tmp_path / "out/checkpoint-3"))
    run = Run(tmp_path / "r")
    assert [each["first_step"] for each in run.header["attempts"]] == [0, 3]
    assert_equal(run, whole, ignore="")


class Breaks(InOrder):
    error: type[BaseException] = RuntimeError
    at = 3

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == self.at:
            raise self.error("boom")
        return super().training_step(*args, **kwargs)


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "failed"), (KeyboardInterrupt, "interrupted")])
def test_the_end_is_told_by_the_with_block(tmp_path: Path, error: type[BaseException], status: str) -> None:
    kind = type("Kind", (Breaks,), {"error": error})
    with pytest.raises(error), recording(tmp_path / "r") as callback:
        trainer(tmp_path, callback, kind=kind).train()
    run = Run(tmp_path / "r")
    assert run.status == status
    assert list(run["training.loss"].index) == [0, 1, 2]


def test_without_a_with_block_the_rows_are_kept_all_the_same(tmp_path: Path) -> None:
    with suppress(RuntimeError):
        trainer(tmp_path, recording(tmp_path / "r"), kind=Breaks).train()
    gc.collect()
    run = Run(tmp_path / "r")
    assert run.status == "failed"
    assert list(run["training.loss"].index) == [0, 1, 2]


def test_the_same_trainer_can_go_on_after_an_exception(tmp_path: Path) -> None:
    one = trainer(tmp_path, recording(tmp_path / "r"), kind=Breaks, save_strategy="steps", save_steps=2)
    with pytest.raises(RuntimeError, match="boom"):
        one.train()
    one.at = -1
    one.train(resume_from_checkpoint=True)
    assert "training_step" not in vars(one)
    run = Run(tmp_path / "r")
    assert [(each["first_step"], each["status"]) for each in run.header["attempts"]] == [
        (0, "failed"),
        (2, "completed"),
    ]
    assert list(run["training.loss"].index) == list(range(EPOCHS * LOADED))
    with pytest.raises(InputError, match="holds a run already"):
        one.train()


def test_a_loss_that_the_trainer_does_not_log(tmp_path: Path) -> None:
    class Nan(InOrder):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs) * (float("nan") if self.state.global_step == 4 else 1)

    run = train(tmp_path, kind=Nan, max_steps=6)
    assert run["training.loss"]["loss"].isna().tolist() == [False] * 4 + [True] * 2
    assert np.isnan(run["gradients.total"]["total"].loc[4])


def test_gradients_that_were_clipped_unseen_are_told(tmp_path: Path) -> None:
    class Own(InOrder):
        def _clip_grad_norm(self, model: nn.Module) -> Any:
            return nn.utils.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)

        def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
            return grad_norm

    if not hasattr(Trainer, "_clip_grad_norm"):
        pytest.skip("this Trainer clips in its loop")
    with pytest.warns(UserWarning, match="clipped"):
        run = train(tmp_path, kind=Own, max_grad_norm=1e-3)
    assert run.header["self_check"]["mistake"] == "clipped"


def test_what_a_callback_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="prob"):
        recording(tmp_path / "r", prob={})
    with pytest.raises(InputError, match="none is calling it"):
        recording(tmp_path / "r").on_train_begin(None, None, None)


def test_deepspeed_is_refused(tmp_path: Path) -> None:
    class Sharded(InOrder):
        def _inner_training_loop(self, *_: Any, **__: Any) -> Any:
            self.is_deepspeed_enabled = True
            self.callback_handler.on_train_begin(self.args, self.state, self.control)

    with pytest.raises(InputError, match="DeepSpeed keeps the gradients"):
        train(tmp_path, kind=Sharded)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "stabilitylab.adapters.huggingface")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'stabilitylab\[transformers\]'"):
        importlib.import_module("stabilitylab.adapters.huggingface")
