"""The self-check: whether the first recorded gradients are those that the optimizer used, over all ranks."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stabilitylab.norms import is_sharded
from stabilitylab.recording.mistakes import Seen, Verdict, judge
from stabilitylab.recording.world import World
from stabilitylab.target import Target

__all__ = ["SelfCheck"]

PATIENCE = 64
"""Give up after so many calls without as many steps of the optimizer as are wanted."""
ASKED = 20
"""Ask so many times for what the other ranks leave."""


@dataclass
class Call:
    """What is kept of one call, on the device; see `Seen`."""

    recorded: Tensor | None
    largest: Tensor | None
    trusted: Tensor
    used: Tensor | None = None
    updates: int = 0
    scaler: float = 1.0


class SelfCheck:
    """Compares, over the first steps, what is recorded with norms computed the slow, obvious way.

    Nothing that happens here is raised into the training.

    Args:
        target: the model, and the optimizer whose steps are watched.
        steps: how many steps of the optimizer are compared; 0 for none.
    """

    def __init__(self, target: Target, steps: int) -> None:
        self.steps, self._target = steps, target
        self._parameters = list(target.trainable.values())
        self._sharded = target.sharded
        self._calls: list[Call] = []
        self._weights: list[Tensor] = []
        self._verdict: Verdict | None = None
        self._done, self._taken, self._asked = False, False, 0
        self._hook = self._watch() if steps else None
        if self._hook is None or not self._parameters:
            self._done = True
            self._verdict = Verdict("not checked", "The self-check was turned off, or there is nothing to watch.")

    def _watch(self) -> Any:
        """Return a hook that sees each step of the optimizer; none where it takes no hooks."""
        optimizer = self._target.optimizer
        if optimizer is None:
            return None
        try:  # a compiled optimizer calls it as it is
            return optimizer.register_step_pre_hook(torch.compiler.disable(self._before_update))
        except AttributeError:  # a wrapper that is an optimizer by name alone
            return None

    def look(self, recorded: Mapping[str, Tensor], scale: Tensor | float) -> None:
        """Take what was recorded of one step, and compute the same slowly."""
        if self._done:
            return
        try:
            if len(self._calls) >= PATIENCE or sum(each.updates > 0 for each in self._calls) >= self.steps:
                self.finish()
                return
            if not self._calls and not self._sharded:
                self._weights = [_slow_norm(each) for each in self._parameters]  # before ranks could drift apart
            norm, largest = recorded.get("gradients.norm"), recorded.get("gradients.max")
            self._calls.append(Call(norm, largest, self._slow_norms() / scale))
        except Exception as error:
            self._fail(error)

    def _before_update(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """Look when the optimizer has its gradients: now, or after the closure that makes them was called once."""
        if self._done:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure) or isinstance(closure, nn.Module):
            self._see_update(optimizer)
            return None
        first = True

        @wraps(closure)
        def evaluate(*given: Any, **named: Any) -> Any:
            nonlocal first
            loss = closure(*given, **named)
            if first:
                self._see_update(optimizer)
            first = False
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": evaluate}
        return (args[0], evaluate, *args[2:]), kwargs

    def _see_update(self, optimizer: Any) -> None:
        """See the gradients that the optimizer is about to use."""
        if not self._calls or self._done:
            return
        last = self._calls[-1]
        last.updates += 1
        if last.used is not None:
            return
        try:
            factor = getattr(optimizer, "grad_scale", None)  # a fused optimizer unscales in its own kernel
            last.used = self._slow_norms() / (1.0 if factor is None else factor)
            last.scaler = _scale_of_caller()
        except Exception as error:
            self._fail(error)

    def _slow_norms(self) -> Tensor:
        values = [_slow_norm(each) for each in self._target.gradients()]
        device = next((each.device for each in values if each.device.type not in ("cpu", "mps")), "cpu")
        return torch.stack([each.to(device, non_blocking=True).double() for each in values])

    def finish(self) -> None:
        """Stop watching the optimizer."""
        if self._done:
            return
        self._done = True
        if self._hook is not None:
            self._hook.remove()

    def _fail(self, error: Exception) -> None:
        self._verdict = Verdict("not checked", f"The self-check failed: {type(error).__name__}: {error}")
        self._done = True

    def take_verdict(self, world: World, last: bool = False) -> Verdict | None:
        """Return the verdict once it is known, and only once; this waits for the device.

        On other ranks than the first, leave there what the first compares. Where some rank leaves nothing, because it
        has no recorder or ended early, the verdict of the first alone is returned after some calls, or the last one.
        """
        if not self._done or self._taken:
            return None
        alone = world.size == 1 or self._sharded or not self._calls
        try:
            if not alone and not world.writes:
                world.post(self._summary())
            if self._verdict is None:
                self._verdict = judge([_on_host(each) for each in self._calls], world.size > 1)
            if not alone and world.writes and self._verdict.mistake == "passed":
                equal = f" The gradients of {world.size} ranks were equal."
                self._verdict = world.compare(self._summary()) or self._with(equal)
        except LookupError:
            self._asked += 1
            if self._asked < ASKED and not last:
                return None
            self._verdict = self._with(" Other ranks left nothing to compare with.")
        except Exception as error:
            self._fail(error)
        self._taken = True
        return self._verdict

    def _with(self, sentence: str) -> Verdict:
        assert self._verdict is not None
        return self._verdict._replace(sentence=self._verdict.sentence + sentence)

    def _summary(self) -> str:
        """Return what ranks compare: norms of gradients and of weights, as JSON."""
        return json.dumps(
            {
                "gradients": [each.trusted.tolist() for each in self._calls],
                "weights": [float(each) for each in self._weights],
                "shapes": [list(each.shape) for each in self._parameters],
            }
        )


def _on_host(call: Call) -> Seen:
    def array(values: Tensor | None) -> np.ndarray | None:
        return None if values is None else values.double().cpu().numpy()

    trusted = array(call.trusted)
    assert trusted is not None
    return Seen(array(call.recorded), array(call.largest), trusted, array(call.used), call.updates, call.scaler)


@torch.no_grad()
def _slow_norm(tensor: Tensor | None) -> Tensor:
    """Return the L2 norm of a whole tensor in float64, where the device has it; 0 of none."""
    if tensor is None:
        return torch.zeros((), dtype=torch.float64)
    if is_sharded(tensor):
        tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.device.type == "mps":
        return torch.linalg.vector_norm(tensor.float())
    return torch.linalg.vector_norm(tensor, dtype=torch.complex128 if tensor.is_complex() else torch.float64)


def _scale_of_caller() -> float:
    """Return the scale of the gradient scaler that is calling the optimizer, 1 if there is none.

    A scaler leaves no trace on the optimizer that it has unscaled; only the first steps look for it, and wait.
    """
    frame = sys._getframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, torch.amp.GradScaler) and caller.is_enabled():
            return float(caller.get_scale())
        frame = frame.f_back  # type: ignore[assignment]
    return 1.0
