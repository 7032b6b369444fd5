"""What is done to gradients and moments against instability, and what each step of it did.

Everything is computed on the device, without waiting for it. Shape suffixes: P parameter tensors, L layers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn

from stabilitylab.layers import Layers
from stabilitylab.norms import norms
from stabilitylab.parameters import Parameters

__all__ = ["Stabilize", "Stabilizers", "zclip"]

USUAL = {"norm": 1.0, "layer": 1.0, "agc": 0.01, "zclip": 2.5}
"""Thresholds where none is given: 1 is common, 0.01 for AGC and 2.5 for ZClip are published."""


class Stabilize(Parameters):
    """What is done against instability."""

    clip: Literal["none", "norm", "layer", "agc", "zclip"] = "none"
    """Clip gradients: to a total norm, to a norm per layer, relative to the weights (AGC), or by z-score (ZClip)."""
    threshold: PositiveFloat | None = None
    """Norm (norm, layer), ratio to the weights' norm (agc), or z-score (zclip) above which gradients are clipped."""
    stem_clip: PositiveFloat | None = None
    """Norm to which the gradient of the first layer is clipped on its own."""
    reset_every: int = Field(0, ge=0)
    """Forget both moments of Adam, or what else the optimizer remembers, every so many steps, as SPAM does; 0 never."""
    reset_warmup: int = Field(150, ge=0)
    """So many steps after a reset, at most reset_every, the learning rate rises from zero again, by a cosine."""
    zclip_memory: float = Field(0.97, gt=0, lt=1)
    """Decay rate of ZClip's mean and variance of the norm."""
    zclip_warmup: int = Field(25, ge=2)
    """So many first steps only give ZClip its mean and variance."""

    @model_validator(mode="after")
    def _clips(self) -> Stabilize:
        if self.threshold is not None and self.clip == "none":
            raise ValueError(f"has a threshold, {self.threshold}, but clip is none: choose one of {', '.join(USUAL)}")
        return self


class Stabilizers:
    """Those of one training; `latest` says what each of them did in the last step.

    Args:
        config: what is done.
        named: trainable parameters by name.
        layers: of the model.
        optimizer: new; a reset takes it back to how it is now.
    """

    def __init__(
        self, config: Stabilize, named: Mapping[str, nn.Parameter], layers: Layers, optimizer: torch.optim.Optimizer
    ) -> None:
        self.config = config
        self._named, self._optimizer = dict(named), optimizer
        self._device = next((each.device for each in named.values()), torch.device("cpu"))
        self._threshold = config.threshold or USUAL.get(config.clip, 0.0)
        members: dict[str, list[str]] = {}
        for name in named:
            members.setdefault(layers.of[name], []).append(name)
        self._members = {layer: members[layer] for layer in layers.names if layer in members}
        self._first = self._members.get(layers.first, [])
        kinds = {"norm": ["total"], "zclip": ["total"], "layer": list(self._members), "agc": list(named)}
        clips_updates = type(optimizer).__name__ == "StableAdamW"
        possible = {
            "coefficient": kinds.get(config.clip, []),
            "first_layer": ["coefficient"] if config.stem_clip else [],
            "update": list(named) if clips_updates else [],
            "reset": ["moments"] if config.reset_every else [],
        }
        self.labels = {name: columns for name, columns in possible.items() if columns}
        """What is told of each step, and its columns.

        ``coefficient``: by what gradients were multiplied, in total, of a layer, or of a tensor. ``first_layer``: by
        what those of the first layer were multiplied besides. ``update``: by what StableAdamW multiplied the update of
        a tensor. ``reset``: whether moments were forgotten.
        """
        self.latest: dict[str, Tensor | list[float]] = {}
        """The same of the last step: a factor for each column, 1 where nothing was clipped; of a reset 0 or 1."""
        if clips_updates:
            optimizer.register_step_post_hook(self._see_update)
        self._norm = torch.zeros(3)  # ZClip's mean, variance, and number of steps seen
        self._new = _memory(optimizer)

    def apply(self, step: int) -> None:
        """Clip the gradients of a step, and forget the moments where it is time."""
        clipped = {"coefficient": self._clip(), "first_layer": self._clip_stem()}
        self.latest = {name: each for name, each in clipped.items() if each is not None}
        if "update" in self.labels:  # known after the update, which a scaler may skip
            self.latest["update"] = torch.full((len(self._named),), math.nan, device=self._device)
        if "reset" in self.labels:
            due = step > 0 and step % self.config.reset_every == 0
            self.latest["reset"] = [float(due)]
            if due:
                self._reset()

    def rate_factor(self, step: int) -> float:
        """Return the factor on the learning rate after a reset."""
        every = self.config.reset_every
        warmup = min(self.config.reset_warmup, every)
        since = step % every if every and step >= every else warmup
        return 1.0 if since >= warmup else (1 - math.cos(math.pi * since / warmup)) / 2

    def state(self) -> dict[str, Tensor]:
        """Return what an interrupted training needs to go on as if it had not been interrupted."""
        return {"stabilizers.norm": self._norm} if self.config.clip == "zclip" else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""
        self._norm = state.get("stabilizers.norm", self._norm)

    def _gradients(self, names: Sequence[str]) -> list[Tensor]:
        return [each.grad for each in (self._named[name] for name in names) if each.grad is not None]

    def _clip(self) -> Tensor | None:
        if self.config.clip == "none":
            return None
        if self.config.clip == "layer":
            parts = [self._gradients(names) for names in self._members.values()]
            return torch.cat([_clip_to(each, self._threshold, self._device) for each in parts])
        if self.config.clip == "agc":
            return self._clip_adaptively()
        gradients = self._gradients(list(self._named))
        if self.config.clip == "norm":
            return _clip_to(gradients, self._threshold, self._device)
        total = torch.linalg.vector_norm(norms(gradients, double=True))
        factor, self._norm = zclip(
            total, self._norm.to(total), self._threshold, self.config.zclip_memory, self.config.zclip_warmup
        )
        return _scale(gradients, factor)

    def _clip_stem(self) -> Tensor | None:
        if self.config.stem_clip is None:
            return None
        return _clip_to(self._gradients(self._first), self.config.stem_clip, self._device)

    def _clip_adaptively(self) -> Tensor:
        """Clip the gradient of each output unit relative to the norm of its weights (Brock et al., 2021)."""
        with_gradient = [name for name in self._named if self._named[name].grad is not None]
        before = norms(self._gradients(with_gradient))
        adaptive_clip_grad([self._named[name] for name in with_gradient], clip_factor=self._threshold)  # type: ignore[no-untyped-call]
        ratio = norms(self._gradients(with_gradient)) / before
        found = dict(zip(with_gradient, torch.where(before > 0, ratio, 1.0), strict=True))
        return torch.stack([found.get(name, before.new_ones(())) for name in self._named])

    @torch.no_grad()
    def _see_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Compute by what the update of each tensor was multiplied: by 1 / RMS of g / sqrt(v), if that is above 1.

        With v after the update, as the optimizer has it: gradients and second moments are still those of this step.
        """
        factors = []
        for each in self._named.values():
            state, rms = optimizer.state.get(each, {}), torch.full((), math.nan, device=self._device)
            if each.grad is not None and "exp_avg_sq" in state:
                rms = each.grad.square().div_(state["exp_avg_sq"].maximum(state["eps_sq"])).mean().sqrt()
            factors.append(1 / rms.clamp(min=1))
        self.latest["update"] = torch.stack(factors)

    def _reset(self) -> None:
        """Forget the moments (Huang et al., 2025, SPAM, arXiv 2501.06842).

        And all else that the optimizer has learned: its state becomes that of a new one. Some keep a part of it, such
        as the number of steps, in their groups; the learning rate there is the schedule's.
        """
        state, groups = self._new
        self._optimizer.state.clear()
        self._optimizer.state.update({each: copy.deepcopy(values) for each, values in state.items()})
        for group, new in zip(self._optimizer.param_groups, groups, strict=True):
            kept = {name: group[name] for name in ("params", "lr")}
            group.clear()
            group.update({**copy.deepcopy(new), **kept})


def _memory(optimizer: torch.optim.Optimizer) -> tuple[dict[Tensor, Any], list[dict[str, Any]]]:
    """Return a copy of the state of each parameter, and of what each group holds besides its parameters."""
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    return {each: copy.deepcopy(values) for each, values in optimizer.state.items()}, copy.deepcopy(groups)


def _clip_to(gradients: Sequence[Tensor], limit: float, device: torch.device) -> Tensor:
    """Scale gradients together to a norm at most, and return the factor, shape (1,); 1 where the norm is not finite."""
    if not gradients:
        return torch.ones(1, device=device)
    total = torch.linalg.vector_norm(norms(gradients, double=True))
    factor = (limit / (total + 1e-6)).clamp(max=1.0)
    factor = torch.where(torch.isfinite(total), factor, torch.ones_like(factor))
    return _scale(gradients, factor)


def _scale(gradients: Sequence[Tensor], factor: Tensor) -> Tensor:
    """Multiply gradients by a factor, and return it, float32, shape (1,)."""
    factor = factor.float()
    torch._foreach_mul_(list(gradients), factor)
    return factor.reshape(1)


def zclip(total: Tensor, moments: Tensor, threshold: float, memory: float, warmup: int) -> tuple[Tensor, Tensor]:
    """Return the factor on the gradients, and the moments after this step (Kumar et al., 2025, arXiv 2504.02507).

    A norm g whose z-score z = (g - mean) / sd is above the threshold becomes mean + threshold^2 / z * sd. Mean and
    variance follow the clipped norm; during the warm-up they are those of the norms so far, and nothing is clipped. A
    norm that is not finite changes nothing, and nothing is done about it. Computed in double precision, as squares of
    norms above 1e19 overflow in single; moments in single precision stop at its largest number.

    Args:
        total: norm of all gradients.
        moments: mean, variance, and number of steps seen, shape (3,).
        threshold: z-score.
        memory: decay rate of the moving averages.
        warmup: steps.
    """
    kept = moments
    if moments.device.type != "mps":
        total, moments = total.double(), moments.double()
    mean, variance, seen = moments.unbind()
    sd = variance.sqrt().clamp_min(1e-12)
    z = (total - mean) / sd
    warm = seen >= warmup
    finite = torch.isfinite(total)
    above = warm & (z > threshold) & finite
    clipped = torch.where(above, mean + threshold**2 / z * sd, total)
    # the running mean and variance of the warm-up (Welford), then exponential ones
    weight = torch.where(warm, torch.full_like(mean, 1 - memory), 1 / (seen + 1))
    change = clipped - mean
    new_mean = mean + weight * change
    slow = memory * variance + (1 - memory) * (clipped - new_mean).square()
    early = (variance * seen + change * (clipped - new_mean)) / (seen + 1)
    new = torch.stack([new_mean, torch.where(warm, slow, early), seen + 1])
    new = new.clamp_max(torch.finfo(kept.dtype).max).to(kept.dtype)
    return torch.where(above, clipped / total, torch.ones_like(total)), torch.where(finite, new, kept)
