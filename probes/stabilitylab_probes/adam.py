"""Adam's moments: how far each tensor is about to move, and whether its second moment has kept up."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor

from stabilitylab import probe
from stabilitylab.errors import InputError
from stabilitylab.norms import norms
from stabilitylab_probes._pieces import pieces, whole

__all__ = ["Probe"]

SERIES = ("adam.rms", "adam.rms_before", "adam.first_moment", "adam.second_moment", "adam.cosine")

UNLIKE = frozenset({"AdaBelief", "Adahessian", "Adamax", "Adopt", "Mars", "Muon", "NvNovoGrad", "SparseAdam"})
"""Optimizers with two betas that average something else than each gradient and its square."""

COUPLED = frozenset({"Adam", "NAdam", "NAdamLegacy", "RAdam"})
"""Optimizers that add their weight decay to the gradient, where their parameter groups do not say."""


class Moments(NamedTuple):
    """One tensor, and what its optimizer keeps of it."""

    column: int
    parameter: Tensor
    first: Tensor
    second: Tensor
    updates: float | Tensor
    """How many of them the moments hold; a tensor where only the device knows."""


class Probe(probe.Probe):
    """Series ``adam.rms``, ``.rms_before``, ``.first_moment``, ``.second_moment``, ``.cosine``, a column per tensor.

    With the gradient g of step t, v_t = beta2 v_(t-1) + (1 - beta2) g^2, and v^ for a v over its bias correction:

    - ``rms`` is the root mean square of g / sqrt(v^_t), with the v after the update, which holds g. It is computed
      aside. This is RMS_t of Wortsman et al., 2023 (arXiv 2304.13013): near 1 while v keeps up with g, and never more
      than sqrt((1 - beta2^t) / (1 - beta2)).
    - ``rms_before`` is the same with v^_(t-1), of before the update, which does not hold g and sets no limit.
    - ``first_moment`` and ``second_moment`` are the L2 norms of ``exp_avg`` and ``exp_avg_sq`` before the update.
    - ``cosine`` is that of the angle between g and ``exp_avg`` before the update.

    v^ counts as eps^2 at least. g is what the optimizer averages: unscaled; clipped as torch clips where the loop names
    ``max_norm``, before clipping elsewhere; with the clipping of a LAMB, the weight decay of an Adam that adds it to
    the gradient, and the sign of ``maximize``. Complex entries count as two; amsgrad's maximum is not used. A tensor
    reads NaN until it has moments; one without a gradient has an rms of 0.
    """

    cost: ClassVar[str] = (
        "about 25 tensor operations and 112 MB per 4 million entries (per 262,144 and 7 MB on a CPU), one pass over "
        "gradients and moments, one more over gradients that are clipped; no wait"
    )

    class Parameters(probe.Parameters):
        """When the moments are looked at."""

        every: PositiveInt = 10
        """Measure at every so many steps; 1 to miss no spike of the rms, which may last a single step."""

    def __init__(self, parameters: Any, target: probe.Target) -> None:
        super().__init__(parameters, target)
        target.need_trainable("adam")
        if target.optimizer is None:
            raise InputError("the probe 'adam' needs the optimizer: pass it to the recorder")
        if not hasattr(target.optimizer, "param_groups"):
            kind = type(target.optimizer).__name__
            raise InputError(f"the probe 'adam' needs an optimizer of torch with param_groups, not a {kind}")
        self._optimizer = target.optimizer
        self._parameters = list(target.trainable.values())
        self._columns = {id(each): column for column, each in enumerate(self._parameters)}
        groups = self._optimizer.param_groups
        if self._is_one_of(UNLIKE) or not all(map(_is_adam_like, groups)):
            raise self._unlike()
        if not any(id(each) in self._columns for group in groups for each in group["params"]):
            raise InputError("the probe 'adam' needs an optimizer that holds trainable parameters of the model itself")
        names = list(target.trainable)
        self.labels = dict.fromkeys(SERIES, names)
        gradient = {"unscaled": True, "clipped": "if the loop names max_norm", "least_second_moment": "eps^2"}
        self.about = {
            "adam.rms": {"unit": "1", "second_moment": "after the update: holds the gradient", **gradient},
            "adam.rms_before": {"unit": "1", "second_moment": "before the update", **gradient},
            "adam.first_moment": {"unit": "gradient", "measured": "before the update"},
            "adam.second_moment": {"unit": "gradient^2", "measured": "before the update; not amsgrad's maximum"},
            "adam.cosine": {"unit": "1", "first_moment": "before the update"},
        }

    def _is_one_of(self, kinds: Collection[str]) -> bool:
        return any(kind.__name__ in kinds for kind in type(self._optimizer).__mro__)

    def _unlike(self) -> InputError:
        kind = type(self._optimizer).__name__
        return InputError(
            "the probe 'adam' needs an optimizer that averages gradients and their squares as exp_avg and exp_avg_sq, "
            f"such as AdamW; {kind} does not"
        )

    def measure(self, step: probe.Step) -> probe.Measurement:
        """Return the rows of `SERIES`, each of shape (number of tensors,)."""
        device = self._parameters[0].device
        factor = self._factor(step)
        columns, values = list[int](), [torch.empty(len(SERIES), 0, device=device)]
        for group, members in self._alike():
            columns += [each.column for each in members]
            measured = _measured(members, group, factor, self._decay(group))
            values.append(measured.to(device, non_blocking=True))
        found = torch.cat(values, dim=1)
        rows = found.new_full((len(SERIES), len(self._parameters)), math.nan)
        rows.index_copy_(1, torch.tensor(columns, dtype=torch.int64, device=device), found)
        return dict(zip(SERIES, rows, strict=True))

    def _factor(self, step: probe.Step) -> Tensor | float:
        """Return what the gradients will have been multiplied by when they are averaged."""
        factor = 1 / step.scale
        # the loop's limit as torch applies it, then that of a LAMB
        limits = (step.max_norm, 1e-6), (self._optimizer.defaults.get("max_grad_norm"), 0.0)
        gradients = [each for each in self.target.gradients() if each is not None]
        if gradients and any(limit is not None for limit, _ in limits):
            total = torch.linalg.vector_norm(norms(gradients))
            for limit, more in limits:
                if limit is not None:
                    factor = factor * (limit / (total * factor + more)).clamp(max=1)
        return factor

    def _alike(self) -> Iterator[tuple[Mapping[str, Any], list[Moments]]]:
        """Yield the tensors that have moments; together those of one group, device, type and number of updates."""
        some = False
        alike: dict[tuple[Any, ...], list[Moments]] = defaultdict(list)
        for number, group in enumerate(self._optimizer.param_groups):
            for each in group["params"]:
                state = self._optimizer.state.get(each)
                if not state or id(each) not in self._columns:
                    continue
                some = True
                first, second = state.get("exp_avg"), state.get("exp_avg_sq")
                if getattr(first, "shape", None) == getattr(second, "shape", None) == each.shape:
                    updates = _on_host(state.get("step", group.get("step", math.nan)))
                    count = None if isinstance(updates, Tensor) else updates
                    moments = Moments(self._columns[id(each)], each, first, second, updates)
                    alike[number, second.device, second.dtype, count, each.grad is None].append(moments)
        if some and not alike:
            raise self._unlike()
        for (number, *_), members in alike.items():
            yield self._optimizer.param_groups[number], members

    def _decay(self, group: Mapping[str, Any]) -> float:
        """Return the weight decay that is added to the gradient."""
        decoupled = group.get("decoupled_weight_decay", not self._is_one_of(COUPLED))
        return 0.0 if decoupled else float(group.get("weight_decay", 0.0))


def _is_adam_like(group: Mapping[str, Any]) -> bool:
    betas, eps = group.get("betas"), group.get("eps")
    return isinstance(betas, tuple | list) and len(betas) == 2 and isinstance(eps, int | float)


def _measured(members: Sequence[Moments], group: Mapping[str, Any], factor: Tensor | float, decay: float) -> Tensor:
    """Return the values of `SERIES` for tensors that are alike, shape (number of series, number of tensors)."""
    beta2, eps = float(group["betas"][1]), float(group["eps"])
    firsts, seconds = [each.first for each in members], [each.second for each in members]
    parameters = [each.parameter for each in members]
    gradients = [each.grad for each in parameters if each.grad is not None]
    if not gradients:  # the optimizer leaves these alone
        gradients, factor, decay = [torch.zeros_like(each) for each in firsts], 1.0, 0.0
    elif group.get("maximize"):
        factor = -factor
    if isinstance(factor, Tensor):
        factor = factor.to(seconds[0].device, non_blocking=True)
    before, after = _bias_corrections([each.updates for each in members], beta2, seconds[0])
    owners, columns = list[int](), list[Tensor]()
    for each in pieces(gradients, firsts, seconds, *([parameters] if decay else [])):
        gradient, first, second, *weight = each.rows
        if isinstance(factor, Tensor) or factor != 1:
            gradient = gradient * factor
        if decay:
            gradient = gradient.add(weight[0], alpha=decay)
        old = second.clamp(min=each.spread(before * eps**2))
        old = each.dots(torch.div(gradient, old, out=old), gradient)
        new = second.mul(beta2).addcmul_(gradient, gradient, value=1 - beta2).clamp_(min=each.spread(after * eps**2))
        new = each.dots(torch.div(gradient, new, out=new), gradient)
        dot = each.dots(gradient, first)
        columns.append(torch.stack([new, old, dot, -dot, *map(each.norms, (first, second, gradient))]))
        owners += each.owners
    found = torch.cat(columns, dim=1)
    new, old, same, opposite = whole(found[:4].clamp(min=0), owners, gradients, 1)
    first, second, gradient = whole(found[4:], owners, gradients, 2)
    entries = _vector([each.numel() * (2 if each.is_complex() else 1) for each in parameters], seconds[0])
    rms, rms_before = (new * after / entries).sqrt(), (old * before / entries).sqrt()
    return torch.stack([rms, rms_before, first, second, (same - opposite) / (gradient * first)])


def _bias_corrections(updates: Sequence[float | Tensor], beta2: float, like: Tensor) -> tuple[Any, Any]:
    """Return 1 - beta2^updates before and after the update: numbers, or a tensor of one each where they are tensors."""
    rate = math.log(beta2) if beta2 > 0 else -math.inf
    if not isinstance(updates[0], Tensor):
        return -math.expm1(updates[0] * rate), -math.expm1((updates[0] + 1) * rate)
    counts = _vector(updates, like)
    return -torch.expm1(counts * rate), -torch.expm1((counts + 1) * rate)


def _on_host(updates: float | Tensor) -> float | Tensor:
    """Return a number that the host has as one."""
    return updates.double().numpy().item() if isinstance(updates, Tensor) and updates.is_cpu else updates


def _vector(values: Sequence[Any], like: Tensor) -> Tensor:
    """Return numbers, of the host or of a device, as one tensor beside another one; float32 at least."""
    dtype = torch.promote_types(like.dtype, torch.float32).to_real()
    if any(isinstance(each, Tensor) for each in values):
        stacked = torch.stack([torch.as_tensor(each).reshape(()) for each in values])
        return stacked.to(like.device, dtype, non_blocking=True)
    return torch.tensor(values, device=like.device, dtype=dtype)
