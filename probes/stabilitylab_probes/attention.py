"""How sharp the attention of each head is: its entropy and its largest logit, on fixed inputs."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from stabilitylab import probe
from stabilitylab.errors import InputError
from stabilitylab_probes._attention_calls import AttentionCalls

__all__ = ["Probe"]


class Probe(probe.Probe):
    """Series ``attention.entropy`` (nats) and ``attention.logit``, a column per block and head, ``blocks.0.head_3``.

    Entropy is that of the attention of a query over its keys, averaged over samples and chosen queries: 0 where each
    looks at one key, log S where it looks at S keys alike. The logit is the largest one of all samples and chosen
    queries, as it goes into the softmax: scaled, with what is added to it, without the keys that are masked. Queries
    that may look at nothing do not count. NaN and inf are kept. Where a block attends more than once, the further
    calls read ``blocks.0.call_1.head_3``; of a block that runs more than once the last run is seen.

    Seen is what goes through `torch.nn.functional.scaled_dot_product_attention`, `torch.nn.MultiheadAttention`, or a
    softmax of a product; the compiled kernels of other packages are not. Logits of fused attention are computed
    again for the chosen queries, in float32.
    """

    class Parameters(probe.Parameters):
        """When the model is shown the fixed inputs, and how many queries count."""

        every: PositiveInt = 50
        """Measure at every so many steps."""
        queries: PositiveInt = 16
        """So many queries of each sample are looked at, evenly spaced, the first and the last among them."""

    cost: ClassVar[str] = (
        "a forward pass on the fixed inputs, about ten tensor operations per call of attention; memory for the logits "
        "of the chosen queries of one call; no wait"
    )

    def __init__(self, parameters: Any, target: probe.Target) -> None:
        super().__init__(parameters, target)
        target.need_inputs("attention")
        self._names = _names(target)
        depth = {layer: index for index, layer in enumerate(target.layers.names)}
        seen = self._look(target)
        self._calls = [
            (layer, call, values.shape[1])
            for layer in sorted(seen, key=lambda each: depth.get(each, len(depth)))
            for call, values in enumerate(seen[layer])
        ]
        if not self._calls:
            raise InputError(
                "the probe 'attention' saw no attention in the model: neither scaled_dot_product_attention, nor "
                "MultiheadAttention, nor a softmax of a product"
            )
        columns = {
            f"{layer}{f'.call_{call}' if call else ''}.head_{head}": {"layer": layer, "call": call, "head": head}
            for layer, call, heads in self._calls
            for head in range(heads)
        }
        shared = {"columns": columns, "queries": parameters.queries, "shown": "fixed inputs, in eval mode"}
        self.labels = {"attention.entropy": list(columns), "attention.logit": list(columns)}
        self.about = {
            "attention.entropy": {"unit": "nat", "over": "mean over samples and queries", **shared},
            "attention.logit": {"unit": "1", "over": "maximum over samples, queries and keys", **shared},
        }

    def _look(self, target: probe.Target) -> dict[str, list[Tensor]]:
        """Return the entropy and the largest logit of each head, shape (2, H), of each call of each layer."""
        seen: dict[str, list[Tensor]] = {}
        running: list[str | None] = []

        def see(logits: Tensor) -> None:
            layer = next((each for each in running if each in target.modules), running[-1] if running else None)
            if layer is not None:
                seen.setdefault(layer, []).append(_sharpness(logits))

        calls = AttentionCalls(self.parameters.queries, see)

        def enter(module: nn.Module, _: Any) -> None:
            running.append(self._names[module])
            if running[-1] is not None:
                seen.pop(running[-1], None)
            if running[-1] in target.modules:
                calls.forget()

        def leave(*_: Any) -> None:
            running.pop()

        with ExitStack() as hooks:
            for module in self._names:
                hooks.callback(module.register_forward_pre_hook(enter).remove)
                hooks.callback(module.register_forward_hook(leave, always_call=True).remove)
            hooks.enter_context(calls)
            target.show_inputs()
        return seen

    def measure(self, step: probe.Step) -> probe.Measurement:
        """Return entropies and largest logits; NaN for what is not reached any more."""
        seen = self._look(step.target)
        device = next((each[0].device for each in seen.values()), torch.device("cpu"))
        rows = []
        for layer, call, heads in self._calls:
            values = seen.get(layer, [])[call : call + 1]
            known = bool(values) and values[0].shape[1] == heads
            rows.append(
                values[0].to(device, non_blocking=True) if known else torch.full((2, heads), torch.nan, device=device)
            )
        return dict(zip(self.labels, torch.cat(rows, dim=1), strict=True))


def _names(target: probe.Target) -> dict[nn.Module, str | None]:
    """Return what a call inside of each module belongs to: a layer, or a module that holds several; or to none."""
    layers = {module: layer for layer, module in target.modules.items()}
    known = {id(each) for name, each in target.parameters.items() if name in target.layers.of}
    names: dict[nn.Module, str | None] = {}
    for path, module in target.paths.items():
        own = any(id(each) in known for each in module.parameters())
        names[module] = layers.get(module, (path or "model") if own else None)
    return names


def _sharpness(logits_NHQS: Tensor) -> Tensor:
    """Return mean entropy and largest logit of each head, shape (2, H)."""
    attends_NHQ = (logits_NHQS != -torch.inf).any(dim=-1)
    entropy_NHQ = torch.special.entr(logits_NHQS.softmax(dim=-1)).sum(dim=-1)
    total_H = torch.where(attends_NHQ, entropy_NHQ, 0).sum(dim=(0, 2))
    return torch.stack([total_H / attends_NHQ.sum(dim=(0, 2)), logits_NHQS.amax(dim=(0, 2, 3))])
