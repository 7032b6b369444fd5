"""Truth: a plain PyTorch loop with the same seed, data and model, recorded by the plain Recorder."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_page import Module
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from plain_twin import EPOCHS, LOADED, PROBES, Model, assert_equal, loader, plain
from torch import nn

from stabilitylab import InputError, Recorder, Run
from stabilitylab.adapters.lightning import RecorderCallback
from stabilitylab.importing import import_run

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def trainer(folder: Path, *callbacks: Callback, trainer_class: Any = Trainer, **options: Any) -> Any:
    options = {"enable_checkpointing": False, "max_epochs": EPOCHS, "accelerator": "cpu", **options}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return trainer_class(default_root_dir=folder, devices=1, callbacks=list(callbacks), **quiet, **options)


def recording(path: Path, **options: Any) -> RecorderCallback:
    return RecorderCallback(path, probes=PROBES, **options)


def fit(folder: Path, module: LightningModule | None = None, **options: Any) -> Run:
    trainer(folder, recording(folder / "r"), **options).fit(module or Module(), loader())
    return Run(folder / "r")


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_series_of_a_plain_loop(tmp_path: Path, accumulate: int, clip: float | None) -> None:
    run = fit(tmp_path, accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    expected = plain(tmp_path / "plain", accumulate=accumulate, max_norm=clip, divisor=lambda _: accumulate)
    assert_equal(run, expected)
    assert ("gradients.clip" in run) == (clip is not None)


def test_bfloat16(tmp_path: Path) -> None:
    run = fit(tmp_path, precision="bf16-mixed")
    assert_equal(run, plain(tmp_path / "plain", precision=lambda: torch.autocast("cpu", dtype=torch.bfloat16)))


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step...")  # the first steps overflow
@pytest.mark.parametrize("clip", [None, 0.2])
def test_float16_with_steps_that_overflow(tmp_path: Path, clip: float | None) -> None:
    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=4)

    plugin = MixedPrecision("16-mixed", "cpu", scaler())
    run = fit(tmp_path, plugins=plugin, accumulate_grad_batches=2, gradient_clip_val=clip)
    half = {"precision": lambda: torch.autocast("cpu", dtype=torch.float16), "scaler": scaler()}
    assert_equal(run, plain(tmp_path / "plain", accumulate=2, max_norm=clip, **half))
    assert not np.isfinite(run["gradients.total"]["total"]).all()
    assert len(set(run["training.scale"]["scale"])) > 2


def test_what_is_clipped_otherwise_has_no_coefficient(tmp_path: Path) -> None:
    class Own(Module):
        def configure_gradient_clipping(self, *args: Any, **options: Any) -> None:
            nn.utils.clip_grad_norm_(self.parameters(), 0.1)

    by_value = {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}
    for name, module, options in (("value", Module(), by_value), ("own", Own(), {"gradient_clip_val": 0.2})):
        run = fit(tmp_path / name, module, **options)
        assert "gradients.clip" not in run
        assert run.header["self_check"]["mistake"] == "passed"


def test_the_training_is_the_same_without(tmp_path: Path) -> None:
    weights = []
    for callbacks in ([], [recording(tmp_path / "r")]):
        module = Module()
        trainer(tmp_path, *callbacks, gradient_clip_val=0.2, accumulate_grad_batches=2).fit(module, loader())
        weights.append([*module.parameters(), torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def saving(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder / "saved", filename="{epoch}", save_top_k=-1)


def test_a_fit_from_a_checkpoint_continues_the_run(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", accumulate_grad_batches=4)
    options = {"accumulate_grad_batches": 4, "enable_checkpointing": True}
    first = trainer(tmp_path, recording(tmp_path / "r"), saving(tmp_path), max_epochs=2, **options)
    first.fit(Module(), loader())
    saved = torch.load(tmp_path / "saved/epoch=0.ckpt", weights_only=True)["callbacks"][RecorderCallback("r").state_key]
    assert {name: value.tolist() for name, value in saved.items()} == {"step": 2}
    again = trainer(tmp_path, recording(tmp_path / "r"), saving(tmp_path), **options)
    again.fit(Module(), loader(), ckpt_path=tmp_path / "saved/epoch=0.ckpt")
    run = Run(tmp_path / "r")
    assert [each["first_step"] for each in run.header["attempts"]] == [0, 2]
    assert_equal(run, whole, ignore="")


def test_a_second_fit_goes_on_and_another_trainer_needs_another_folder(tmp_path: Path) -> None:
    callback, module = recording(tmp_path / "r"), Module()
    one = trainer(tmp_path, callback, max_epochs=1)
    one.fit(module, loader())
    assert callback.recorder is None
    one.fit_loop.max_epochs = 2
    one.fit(module, loader())
    run = Run(tmp_path / "r")
    assert [each["first_step"] for each in run.header["attempts"]] == [0, LOADED]
    assert list(run["training.loss"].index) == list(range(2 * LOADED))
    with pytest.raises(InputError, match="holds a run already"):
        trainer(tmp_path, callback, max_epochs=1).fit(module, loader())


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Lightning ignores further interrupts for the rest of the process."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize(
    ("error", "raised", "status"),
    [(RuntimeError, RuntimeError, "failed"), (KeyboardInterrupt, SystemExit, "interrupted")],
)
def test_the_end_of_a_fit_is_told(tmp_path: Path, interrupts: None, error: Any, raised: Any, status: str) -> None:
    class Ends(Module):
        def training_step(self, batch: Any, index: int) -> Any:
            if index == 3:
                raise error("boom")
            return super().training_step(batch, index)

    with pytest.raises(raised):
        fit(tmp_path, Ends())
    run = Run(tmp_path / "r")
    assert run.status == status
    assert "boom" in run.header["attempts"][-1]["message"] or status == "interrupted"
    assert list(run["training.loss"].index) == [0, 1, 2]


# ---- manual optimization


class TwoPlayers(LightningModule):
    """Two optimizers, the second of which steps at every other batch; one loss each."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.maker, self.judge = nn.Linear(6, 6), nn.Linear(6, 1)

    def losses(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        yield (self.judge(self.maker(images)) - 1).square().mean()
        yield (self.judge(self.maker(images).detach()) - self.judge(images) + 1).square().mean()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(each.parameters(), lr=0.1) for each in (self.maker, self.judge)]

    def training_step(self, batch: Any, index: int) -> None:
        for which, (optimizer, loss) in enumerate(zip(self.optimizers(), self.losses(batch["images"]), strict=True)):
            if which == 1 and index % 2:
                continue
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()


def test_one_callback_for_each_of_several_optimizers(tmp_path: Path) -> None:
    callbacks = [recording(tmp_path / f"r{index}", optimizer=index) for index in (0, 1)]
    trainer(tmp_path, *callbacks, max_epochs=2).fit(TwoPlayers(), loader())

    module = TwoPlayers()
    optimizers = module.configure_optimizers()
    recorders = [
        Recorder(tmp_path / f"plain{index}", module, each, probes=PROBES) for index, each in enumerate(optimizers)
    ]
    for _ in range(2):
        for number, batch in enumerate(loader()):
            for which, loss in enumerate(module.losses(batch["images"])):
                if which == 1 and number % 2:
                    continue
                optimizers[which].zero_grad()
                loss.backward()
                recorders[which].step(loss)
                optimizers[which].step()
    for index, recorder in enumerate(recorders):
        recorder.close()
        assert_equal(Run(tmp_path / f"r{index}"), Run(tmp_path / f"plain{index}"), ignore="")


def test_several_optimizers_continue_at_their_own_steps(tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        return [recording(tmp_path / f"r{index}", optimizer=index) for index in (0, 1)]

    first = trainer(tmp_path, *callbacks(), saving(tmp_path), max_epochs=1, enable_checkpointing=True)
    first.fit(TwoPlayers(), loader())
    again = trainer(tmp_path, *callbacks(), saving(tmp_path), max_epochs=2, enable_checkpointing=True)
    again.fit(TwoPlayers(), loader(), ckpt_path=tmp_path / "saved/epoch=0.ckpt")
    assert [len(Run(tmp_path / f"r{index}")["training.loss"]) for index in (0, 1)] == [2 * LOADED, LOADED]


def test_an_optimizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no optimizer 2; the module has 1"):
        trainer(tmp_path, recording(tmp_path / "r", optimizer=2)).fit(Module(), loader())
    with pytest.raises(TypeError, match="prob"):
        recording(tmp_path / "r", prob={})


# ---- what else a loop can do


def test_two_optimizers_after_one_backward_share_its_loss(tmp_path: Path) -> None:
    class Shared(TwoPlayers):
        def training_step(self, batch: Any, index: int) -> None:
            self.manual_backward(next(self.losses(batch["images"])))
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    callbacks = [recording(tmp_path / f"r{index}", optimizer=index) for index in (0, 1)]
    trainer(tmp_path, *callbacks, max_epochs=1).fit(Shared(), loader())
    one, other = (Run(tmp_path / f"r{index}")["training.loss"] for index in (0, 1))
    assert one.equals(other)
    assert len(one) == LOADED


def test_a_batch_that_is_left_out_has_no_loss(tmp_path: Path) -> None:
    class Skips(Module):
        def training_step(self, batch: Any, index: int) -> Any:
            return None if index == 1 else super().training_step(batch, index)

    with pytest.warns(UserWarning, match="returned `None`"):
        run = fit(tmp_path, Skips(), max_epochs=1)
    assert list(run["training.loss"].index) == [0, 2, 3, 4, 5]
    assert list(run["training.lr"].index) == list(range(LOADED))


def test_an_optimizer_that_evaluates_several_times_has_one_row_a_step(tmp_path: Path) -> None:
    class Closures(Module):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.model.parameters(), max_iter=3)

    run = fit(tmp_path, Closures(), max_epochs=1)
    model = Model()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    with Recorder(tmp_path / "plain", model, optimizer, probes=PROBES) as recorder:
        for step, batch in enumerate(loader()):

            def evaluate(step: int = step, batch: Any = batch) -> torch.Tensor:
                optimizer.zero_grad()
                loss = model(**batch)["loss"]
                loss.backward()
                if recorder.index == step:
                    recorder.step(loss)
                return loss

            optimizer.step(evaluate)
    assert_equal(run, Run(tmp_path / "plain"))
    assert list(run["training.loss"].index) == list(range(LOADED))


def test_both_names_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pytorch_lightning

    monkeypatch.delitem(sys.modules, "lightning.pytorch")  # as in a program that imports the other
    monkeypatch.delitem(sys.modules, "stabilitylab.adapters.lightning")
    adapter = importlib.import_module("stabilitylab.adapters.lightning")
    assert issubclass(adapter.RecorderCallback, pytorch_lightning.Callback)

    class Old(pytorch_lightning.LightningModule):
        training_step, configure_optimizers = Module.training_step, Module.configure_optimizers

        def __init__(self) -> None:
            super().__init__()
            self.model = Model()

    callback = adapter.RecorderCallback(tmp_path / "r", probes=PROBES)
    trainer(tmp_path, callback, trainer_class=pytorch_lightning.Trainer, gradient_clip_val=0.2).fit(Old(), loader())
    assert_equal(Run(tmp_path / "r"), plain(tmp_path / "plain", max_norm=0.2))


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "stabilitylab.adapters.lightning")
    for name in ("lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"pip install 'stabilitylab\[lightning\]'"):
        importlib.import_module("stabilitylab.adapters.lightning")


def test_the_log_of_a_csv_logger_is_imported_as_it_was(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="log")
    losses = np.random.default_rng(2).random(50)
    losses[8] = np.nan
    for step, loss in enumerate(losses.tolist()):
        logger.log_metrics({"train_loss": loss, "grad_2.0_norm/model.head.weight": loss + 1}, step)
        if step % 10 == 0:
            logger.log_metrics({"val_loss": 1.5}, step)  # a row of its own for the same step
    logger.save()
    import_run([logger.log_dir], tmp_path / "run")
    run = Run(tmp_path / "run")
    np.testing.assert_array_equal(run["training.loss"]["loss"], losses)
    np.testing.assert_array_equal(run["gradients.norm"]["model.head.weight"], losses + 1)
    assert run["imported.val_loss"].index.tolist() == [0, 10, 20, 30, 40]
