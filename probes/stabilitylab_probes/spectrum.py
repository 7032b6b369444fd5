"""The spectrum of the embeddings, in which dimensional collapse shows as singular values that vanish."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor

from stabilitylab import probe
from stabilitylab.errors import InputError
from stabilitylab_probes._spectral_measures import MEASURES, effective_rank, measures, singular_values

__all__ = ["Probe", "effective_rank", "singular_values"]


class Probe(probe.Probe):
    """Series ``spectrum.representation``, ``.projection``, ``.prediction`` and the same with ``momentum_`` before them.

    A column per rank order: the singular values of the centered covariance, which are variances, the squares of those
    of the centered features over N - 1. ``spectrum.rank`` and the other measures of `MEASURES` sum them up, with a
    column for each of these features and for each block, whose output is averaged over its tokens or pixels. What
    ``run.json`` says of a measure tells its definition and source; they are not comparable with each other.

    Measured on the fixed images, held-out and bank together, in eval mode; NaN where a feature is not finite. On a
    GPU the decomposition waits for the device, which is why it is taken seldom.
    """

    class Parameters(probe.Parameters):
        """When the spectrum is taken, and of what."""

        every: PositiveInt = 50
        """Measure at every so many steps."""
        blocks: bool = True
        """Whether the outputs of the blocks are measured, too: all layers whose names end in a number."""
        momentum: bool = True
        """Whether the momentum encoder is measured, too: it must encode the fixed images for that."""

    cost: ClassVar[str] = (
        "two eigendecompositions in float64 for each feature and block, one pass of the momentum encoder over the "
        "fixed images; the features are shared with knn; waits on a GPU"
    )

    def __init__(self, parameters: Any, target: probe.Target) -> None:
        super().__init__(parameters, target)
        held_out = target.need_held_out("spectrum")
        blocks = [layer for layer in target.modules if layer[-1].isdigit()] if parameters.blocks else []
        target.taps.update(blocks)
        shown = held_out.images[:2]
        found = {name: each for name, each in target.features(shown).items() if name not in target.taps - set(blocks)}
        momentum = target.momentum_features(shown) if parameters.momentum else {}
        taken = sorted({*found} & {*MEASURES, *momentum} | {*momentum} & {*MEASURES})
        if taken:
            raise InputError(f"the probe 'spectrum' cannot name its series: {taken[0]!r} stands for two things")
        found |= momentum
        sizes = {name: each.shape[1] for name, each in found.items() if each.ndim == 2 and each.is_floating_point()}
        if not sizes:
            raise InputError("the probe 'spectrum' needs features of shape (N, D) from held_out.encode")
        self._taps = [name for name in sizes if name not in blocks] + [name for name in blocks if name in sizes]
        samples = len(held_out.images) + len(held_out.bank)
        self.labels = {
            f"spectrum.{name}": [str(rank) for rank in range(sizes[name])] for name in self._taps if name not in blocks
        }
        self.about = {
            series: {"samples": samples, "dimensions": len(ranks), "unit": "variance", "centered": True}
            for series, ranks in self.labels.items()
        }
        shared = {"samples": samples, "dimensions": {name: sizes[name] for name in self._taps}, "unit": "1"}
        for name, measure in MEASURES.items():
            self.labels[f"spectrum.{name}"] = self._taps
            self.about[f"spectrum.{name}"] = {"measure": measure.sentence, "centered": measure.centered, **shared}

    def measure(self, step: probe.Step) -> probe.Measurement:
        """Return the singular values of each feature, and what sums them up."""
        features = self._features(step)
        spectra: dict[str, Tensor] = {}
        summed: dict[str, Mapping[str, Tensor]] = {}
        sizes = {tuple(each.shape): None for each in features.values()}
        for size in sizes:
            alike = [name for name, each in features.items() if tuple(each.shape) == size]
            values, summary = measures([features[name] for name in alike])
            spectra |= zip(alike, values, strict=True)
            summed |= {name: {key: each[index] for key, each in summary.items()} for index, name in enumerate(alike)}
        found = {f"spectrum.{name}": values for name, values in spectra.items() if f"spectrum.{name}" in self.labels}
        return found | {f"spectrum.{key}": torch.stack([summed[name][key] for name in self._taps]) for key in MEASURES}

    def _features(self, step: probe.Step) -> dict[str, Tensor]:
        """Return the features of all fixed images, held-out and bank, each of shape (N, D)."""
        held_out, bank = dict(step.features.held_out), dict(step.features.bank)
        if self.parameters.momentum:
            fixed = step.target.need_held_out("spectrum")
            held_out |= step.target.momentum_features(fixed.images)
            bank |= step.target.momentum_features(fixed.bank)
        return {name: torch.cat([held_out[name], bank[name]]) for name in self._taps}
