"""The spectrum of the embeddings, in which dimensional collapse shows as singular values that vanish."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from stabilitylab import probe

__all__ = ["Probe", "effective_rank", "singular_values"]

TAPS = ("representation", "projection")


def singular_values(features: Tensor) -> Tensor:
    """Return the singular values of the centered covariance of features (N, D) in float64, descending, shape (D,).

    NaN everywhere if a feature is not finite.
    """
    device = torch.device("cpu") if features.device.type == "mps" else features.device  # no float64 there
    centered = features.to(device, torch.float64)
    centered = centered - centered.mean(dim=0)
    covariance = centered.T @ centered / max(len(features) - 1, 1)
    finite = covariance.isfinite().all()
    values = torch.linalg.eigvalsh(torch.where(finite, covariance, torch.zeros_like(covariance)))
    return torch.where(finite, values.flip(0).clamp_min(0), torch.full_like(values, float("nan")))


def effective_rank(values: Tensor) -> Tensor:
    """Return exp(entropy) of the normalized singular values (D,): Roy and Vetterli, 2007; NaN where all are zero."""
    return torch.special.entr(values / values.sum()).sum().exp()


class Probe(probe.Probe):
    """Series ``spectrum.representation``, ``spectrum.projection`` (a column per rank order) and ``spectrum.rank``.

    Measured on the fixed images, held-out and bank together, in eval mode. A singular value of the covariance is a
    variance: the square of that of the centered features over N - 1. ``spectrum.rank`` is the effective rank.
    On a GPU the decomposition waits for the device, which is why it is taken seldom.
    """

    class Parameters(probe.Parameters):
        """When the spectrum is taken."""

        every: PositiveInt = 50
        """Measure at every so many steps."""

    def __init__(self, parameters: Any, target: probe.Target) -> None:
        super().__init__(parameters, target)
        held_out = target.need_held_out("spectrum")
        sizes = {name: value.shape[1] for name, value in target.features(held_out.images[:2]).items() if name in TAPS}
        samples = len(held_out.images) + len(held_out.bank)
        self.labels = {f"spectrum.{name}": [str(rank) for rank in range(size)] for name, size in sizes.items()}
        self.about = {
            f"spectrum.{name}": {"samples": samples, "dimensions": size, "unit": "variance"}
            for name, size in sizes.items()
        }
        self.labels["spectrum.rank"] = list(sizes)
        self.about["spectrum.rank"] = {"samples": samples, "measure": "effective rank, Roy and Vetterli 2007, centered"}

    def measure(self, step: probe.Step) -> probe.Measurement:
        """Return the singular values of each tap, and their effective ranks."""
        features = step.features
        spectra = {
            name: singular_values(torch.cat([features.held_out[name], features.bank[name]]))
            for name in self.labels["spectrum.rank"]
        }
        ranks = torch.stack([effective_rank(values) for values in spectra.values()])
        return {f"spectrum.{name}": values for name, values in spectra.items()} | {"spectrum.rank": ranks}
