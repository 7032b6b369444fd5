"""The Trainer of Hugging Face: a callback that records every step of the optimizer before the gradients are clipped."""

from __future__ import annotations

import inspect
import math
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, update_wrapper
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from stabilitylab.errors import InputError
from stabilitylab.recorder import Recorder

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise InputError(
        "the adapter of the Hugging Face Trainer needs transformers: pip install 'stabilitylab[transformers]'"
    ) from error

__all__ = ["RecorderCallback"]


class RecorderCallback(TrainerCallback):
    """Record what a `transformers.Trainer` trains.

    ::

        with RecorderCallback("runs/mine") as callback:
            Trainer(model, arguments, train_dataset=dataset, callbacks=[callback]).train()

    One row a step of the optimizer. The Trainer tells its callbacks of a step after it has clipped, so two of its
    methods are replaced while it trains: the accelerator's ``clip_grad_norm_`` records first, and the loss is the sum
    of what ``training_step`` returned for the micro-batches, which is what the Trainer adds to its running loss.
    Training from a checkpoint continues the run at the step of the checkpoint.

    The Trainer does not tell of exceptions: leaving the ``with`` block does. Without one, the run is closed as failed
    when the callback is no longer in use, or at the end of the process.

    Args:
        path: the run folder.
        options: of the `Recorder`: ``probes``, ``held_out``, ``inputs``, ``mirror``, ``budget``, ...

    Raises:
        InputError: when training begins, for the reasons of the `Recorder`, or because DeepSpeed holds the gradients.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        inspect.signature(Recorder).bind(path, None, None, first_step=0, **options)  # a wrong name fails here
        self.recorder: Recorder | None = None
        """Of the training that is running."""
        self._path, self._options = path, options
        self._trainer: Any = None
        self._loss: Tensor | None = None
        self._replaced = ExitStack()
        self._warned = False

    def on_train_begin(self, args: Any, state: Any, *_: Any, **kwargs: Any) -> None:
        """Begin a run, or continue the one that a checkpoint left."""
        self._fail()  # a training that ended without telling
        self._trainer = trainer = _calling_trainer()
        if getattr(trainer, "is_deepspeed_enabled", False):
            raise InputError("DeepSpeed keeps the gradients to itself: they cannot be recorded")
        options = {"scaler": trainer.accelerator.scaler, "seed": args.seed, **self._options}
        recorder = Recorder(self._path, kwargs["model"], kwargs["optimizer"], first_step=state.global_step, **options)
        self.recorder, self._loss = recorder, None
        self._forgotten = weakref.finalize(self, _close_as_failed, recorder)
        self._replaced.enter_context(_replacing(trainer, "training_step", self._summing))
        self._replaced.enter_context(_replacing(trainer.accelerator, "clip_grad_norm_", self._recording))

    def _summing(self, training_step: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        loss = training_step(*args, **kwargs)
        self._loss = loss if self._loss is None else self._loss + loss
        return loss

    def _recording(self, clip: Callable[..., Any], parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
        if self._trainer.accelerator.sync_gradients:
            self._record(max_norm if math.isfinite(max_norm) else None)
        return clip(parameters, max_norm, *args, **kwargs)

    def on_pre_optimizer_step(self, args: Any, *_: Any, **__: Any) -> None:
        """Record the step if the Trainer did not clip."""
        if self._record(None) and args.max_grad_norm and not self._warned:
            self._warned = True
            warnings.warn("the Trainer clipped in an unknown way: clipped gradients are recorded", stacklevel=2)

    def _record(self, max_norm: float | None) -> bool:
        """Record the step, once; tell whether it was not recorded yet."""
        if self.recorder is None or self.recorder.index > self._trainer.state.global_step:
            return False
        self.recorder.step(self._loss, max_norm=max_norm)
        self._loss = None
        return True

    def on_save(self, *_: Any, **__: Any) -> None:
        """Write what was recorded before the checkpoint."""
        if self.recorder is not None:
            self.recorder.settle()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Close the run."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._replaced.close()
        if self.recorder is not None:
            self._forgotten.detach()
            recorder, self.recorder = self.recorder, None
            recorder.__exit__(kind, error, trace)

    def _fail(self) -> None:
        """Close what a training left that ended without telling."""
        self._replaced.close()
        if self.recorder is not None:
            self._forgotten()
            self.recorder = None


def _close_as_failed(recorder: Recorder) -> None:
    recorder.close("failed", "the training ended without telling why")


def _calling_trainer() -> Any:
    """Return the Trainer that is calling: a callback is told everything but whom it serves."""
    frame = sys._getframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer):
            return caller
        frame = frame.f_back  # type: ignore[assignment]
    raise InputError("a RecorderCallback records the training of a transformers.Trainer, and none is calling it")


@contextmanager
def _replacing(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Call a function, with the method as its first argument, wherever the method of this one object is called."""
    method, own = getattr(owner, name), name in vars(owner)
    setattr(owner, name, update_wrapper(partial(function, method), method))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, method)
        else:
            delattr(owner, name)
