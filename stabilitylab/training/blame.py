"""Where a forward pass first stops being finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stabilitylab.target import untouched

__all__ = ["first_nonfinite"]


@torch.no_grad()
def first_nonfinite(model: nn.Module, forward: Callable[[], Any]) -> str:
    """Return where numbers first stop being finite: in the weights, or else in the output of a module.

    The forward pass is run again under hooks; weights, buffers, modes and random states are put back.

    Args:
        model: the model.
        forward: runs the forward pass again on the same batch.
    """
    # running statistics are not looked at: the forward pass that failed has moved them already
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"the weights {name}"
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    found: list[str] = []
    names = {module: name for name, module in model.named_modules()}

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if not found and not _finite(output):
            kind = "input" if not _finite(inputs) else "output"
            found.append(f"the {kind} of {names[module] or 'the model'}")

    hooks = [module.register_forward_hook(look) for module in model.modules()]
    try:
        with untouched(model):
            forward()
    finally:
        for hook in hooks:
            hook.remove()
        model.load_state_dict(kept)
    return found[0] if found else "the loss alone"


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, list | tuple):
        return all(_finite(each) for each in value)
    if isinstance(value, dict):
        return all(_finite(each) for each in value.values())
    return True
