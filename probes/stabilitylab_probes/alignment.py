"""Alignment and uniformity of the embeddings: what contrastive learning trades against each other."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn.functional import normalize

from stabilitylab import probe
from stabilitylab.errors import InputError

__all__ = ["Probe", "alignment", "uniformity"]


def alignment(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared distance of positive pairs: 0 if all are equal, 2 if they are unrelated.

    Args:
        x: l2-normalized embeddings, shape (N, D).
        y: those of their positives, shape (N, D).

    References:
        Wang and Isola, 2020, Understanding contrastive representation learning through alignment and uniformity on
        the hypersphere. ICML. arXiv 2005.10242.
    """
    return (x - y).square().sum(dim=1).mean()


def uniformity(x: Tensor) -> Tensor:
    """Return the log of the mean of exp(-2 distance^2) over distinct pairs: 0 if all are equal, lower if spread out.

    Spread evenly over the sphere they reach log 0F1(; D / 2; 4) - 4, about -4 + 8 / D.

    Args:
        x: l2-normalized embeddings, shape (N, D).

    Returns:
        NaN if N is less than two.

    References:
        Wang and Isola, 2020, arXiv 2005.10242.
    """
    potential = (4 * (x @ x.T) - 4).exp_().fill_diagonal_(0)
    return (potential.sum() / (len(x) * (len(x) - 1))).log()


class Probe(probe.Probe):
    """Series ``alignment.alignment`` (column ``pairs``) and ``alignment.uniformity`` (``projection``, ``positive``).

    Of the outputs ``projection`` and ``positive`` that the loop gives, each (N, D): row i of one and row i of the other
    are embeddings of one image in two views. The first ``rows`` of them are l2-normalized (a row of zeros stays zero)
    and compared in float64, where the device has it. Nothing is recorded where a loop gives no such outputs. With many
    processes these are the images of the first one. Both numbers depend on which networks made the embeddings: the
    method says so.
    """

    cost: ClassVar[str] = "about 30 tensor operations on rows x D and rows x rows numbers; no wait"

    class Parameters(probe.Parameters):
        """When the embeddings are compared, and how many of them."""

        every: PositiveInt = 10
        """Measure at every so many steps."""
        rows: int = Field(512, ge=2)
        """At most so many images of the batch: each is compared with each."""

    def __init__(self, parameters: Any, target: probe.Target) -> None:
        super().__init__(parameters, target)
        self.labels = {"alignment.alignment": ["pairs"], "alignment.uniformity": ["projection", "positive"]}
        about = {
            "rows": parameters.rows,
            "reference": "Wang and Isola 2020, arXiv 2005.10242",
            "measured_on": "the first rank",
        }
        self.about = {
            "alignment.alignment": {"unit": "squared distance", "measure": "mean |x - y|^2 of positive pairs", **about},
            "alignment.uniformity": {"unit": "1", "measure": "log mean exp(-2 |x - x'|^2) of distinct pairs", **about},
        }

    def measure(self, step: probe.Step) -> probe.Measurement | None:
        """Return the alignment of the pairs, and the uniformity of each side."""
        if "projection" not in step.outputs or "positive" not in step.outputs:
            return None
        x, y = step.outputs["projection"], step.outputs["positive"]
        if x.ndim != 2 or x.shape != y.shape or not x.is_floating_point() or not y.is_floating_point():
            raise InputError(
                "the probe 'alignment' needs outputs 'projection' and 'positive' of one shape (N, D), not complex: "
                f"{x.dtype} {tuple(x.shape)} and {y.dtype} {tuple(y.shape)} were given"
            )
        dtype = torch.float32 if x.device.type == "mps" else torch.float64  # no float64 there
        x, y = (normalize(each[: self.parameters.rows].to(x.device, dtype), dim=1) for each in (x, y))
        return {
            "alignment.alignment": alignment(x, y).reshape(1),
            "alignment.uniformity": torch.stack([uniformity(x), uniformity(y)]),
        }
