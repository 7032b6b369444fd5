"""The scale of an fp16 loop: what it is, and whether the gradients still carry it, without a wait for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["scale_now"]


def scale_now(
    scaler: torch.amp.GradScaler | None, optimizer: torch.optim.Optimizer | None, device: torch.device
) -> tuple[Tensor | float, Tensor | None]:
    """Return the factor that the gradients still carry, and the scale of the loss (None without a scaler).

    ``scaler.get_scale()`` would wait for the device; scaling a one does not. Whether ``scaler.unscale_`` was called
    for this optimizer is known to the scaler alone, in a private record of its own; it is only read.
    """
    if scaler is None or not scaler.is_enabled():
        return 1.0, None
    scale = scaler.scale(torch.ones((), device=device))
    assert isinstance(scale, Tensor)
    states: Any = getattr(scaler, "_per_optimizer_states", {})
    wanted = [states[id(optimizer)]] if id(optimizer) in states else list(states.values()) if optimizer is None else []
    unscaled = any(getattr(state.get("stage"), "name", "") != "READY" for state in wanted)
    return (1.0 if unscaled else scale), scale
