"""Lightning: a callback that records every step of an optimizer, with gradients unscaled and not clipped yet."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stabilitylab.errors import InputError
from stabilitylab.recorder import Recorder
from stabilitylab.recording.scaling import scale_now

__all__ = ["RecorderCallback"]


def _callback_class() -> Any:
    """Return the class of callbacks of the package that is in use: the library is published under two names."""
    for name in sorted(("lightning.pytorch", "pytorch_lightning"), key=lambda name: name not in sys.modules):
        with suppress(ImportError):
            return import_module(name).Callback
    raise InputError("the Lightning adapter needs lightning: pip install 'stabilitylab[lightning]'")


if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    Callback = _callback_class()


class RecorderCallback(Callback):
    """Record what a Lightning Trainer fits; for ``lightning.pytorch`` and ``pytorch_lightning``.

    ::

        trainer = Trainer(callbacks=[RecorderCallback("runs/mine")])

    One row a step of the optimizer, before clipping. The loss is what was given to backward since the step before,
    unscaled and summed: under accumulation the mean over the micro-batches. A fit from a checkpoint continues the run
    at the step of the checkpoint.

    Args:
        path: the run folder.
        optimizer: which one is recorded, where manual optimization has several; one callback each records them all.
        options: of the `Recorder`: ``probes``, ``held_out``, ``inputs``, ``mirror``, ``budget``, ...

    Raises:
        InputError: when a fit begins, for the reasons of the `Recorder`, or if there is no such optimizer.
    """

    def __init__(self, path: str | Path, *, optimizer: int = 0, **options: Any) -> None:
        inspect.signature(Recorder).bind(path, None, None, first_step=0, **options)  # a wrong name fails here
        self.recorder: Recorder | None = None
        """Of the fit that is running."""
        self._path, self._optimizer, self._options = path, optimizer, options
        self._state: dict[str, Tensor] = {}
        self._loss: Tensor | None = None
        self._stepped = False

    @property
    def state_key(self) -> str:
        """The name of its state in a checkpoint."""
        return f"stabilitylab.RecorderCallback[{self._optimizer}]"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin a run, or continue the one that a checkpoint or an earlier fit of this trainer left."""
        if not 0 <= self._optimizer < len(trainer.optimizers):
            raise InputError(f"there is no optimizer {self._optimizer}; the module has {len(trainer.optimizers)}")
        first = trainer.global_step
        if first and not pl_module.automatic_optimization:
            first = int(self._state.get("step", first))  # the global step counts the steps of all optimizers
        optimizer = trainer.optimizers[self._optimizer]
        options = {"scaler": _scaler(trainer), **self._options}
        self.recorder = Recorder(self._path, trainer.model, optimizer, first_step=first, **options)
        self.recorder.load_state(self._state if first else {})
        self._loss, self._stepped = None, False

    def on_train_batch_start(self, *_: Any) -> None:
        """Forget the loss of a step that was made: the next one may have none."""
        if self._stepped:
            self._loss = None

    def on_before_backward(self, trainer: Any, _: Any, loss: Tensor) -> None:
        """Add up the losses of a step, as they were before the scaler."""
        _, scale = scale_now(_scaler(trainer), None, loss.device)
        loss = loss.detach() if scale is None else loss.detach() / scale
        self._loss = loss if self._loss is None or self._stepped else self._loss + loss
        self._stepped = False

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Record: Lightning calls this after the last backward pass and unscaling, and before it clips."""
        self._stepped = True
        if self.recorder is None or optimizer is not trainer.optimizers[self._optimizer]:
            return
        if pl_module.automatic_optimization and self.recorder.index > trainer.global_step:
            return  # L-BFGS evaluates its loss several times a step
        self.recorder.step(self._loss, max_norm=_max_norm(trainer, pl_module))

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed fit needs, as tensors; everything recorded so far is on disk then."""
        if self.recorder is not None:
            self.recorder.settle()
            self._keep(self.recorder)
        return self._state

    def _keep(self, recorder: Recorder) -> None:
        state = {name: value.clone() for name, value in recorder.state().items()}
        self._state = {"step": torch.tensor(recorder.index), **state}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` returned."""
        self._state = dict(state_dict)

    def on_train_end(self, *_: Any) -> None:
        """Close the run."""
        self._close(None)

    def on_exception(self, _: Any, __: Any, exception: BaseException) -> None:
        """Close the run and say what ended it."""
        self._close(exception)

    def _close(self, error: BaseException | None) -> None:
        if self.recorder is None:
            return
        recorder, self.recorder = self.recorder, None
        self._keep(recorder)  # for a checkpoint that is saved after the end
        recorder.__exit__(type(error) if error else None, error, None)


def _scaler(trainer: Any) -> torch.amp.GradScaler | None:
    return getattr(trainer.precision_plugin, "scaler", None)


def _max_norm(trainer: Any, module: Any) -> float | None:
    """Return the total norm to which Lightning is about to clip; None if it clips otherwise, or the module does."""
    own = module.configure_gradient_clipping.__qualname__ != "LightningModule.configure_gradient_clipping"
    if own or not trainer.gradient_clip_val or trainer.gradient_clip_algorithm == "value":
        return None
    return float(trainer.gradient_clip_val)
