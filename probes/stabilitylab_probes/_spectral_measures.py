"""What sums up a spectrum, on the device, for many features of one size at once.

The definitions are those of `stabilitylab.stats.spectrum`. Shape suffixes: T features (taps), N samples, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["MEASURES", "Measure", "effective_rank", "measures", "singular_values"]


class Measure(NamedTuple):
    """What ``run.json`` says of a measure."""

    sentence: str
    centered: bool


FIRST, LAST = 10, 100
"""The ranks between which alpha-ReQ is fitted."""


MEASURES = {
    "rank": Measure(
        "effective rank, Roy and Vetterli 2007, centered: exp(entropy) of the shares of the variance", True
    ),
    "rankme": Measure(
        "RankMe, Garrido et al. 2023, not centered: exp(entropy) of the shares p + 1e-7 of the singular values", False
    ),
    "participation_ratio": Measure("participation ratio, Gao et al. 2017, centered: (sum l)^2 / sum l^2", True),
    "stable_rank": Measure("stable rank, Rudelson and Vershynin 2007, centered: sum l / max l", True),
    "alpha_req": Measure(
        "alpha-ReQ, Agrawal et al. 2022, centered: minus the slope of log l_i over log i, i in 10..100, weights 1/i",
        True,
    ),
    "feature_std": Measure(
        "mean deviation, Chen and He 2021, not centered: mean over dimensions of the standard deviation of "
        "l2-normalized features; 1 / sqrt(D) where they are spread evenly",
        False,
    ),
}


def measures(features: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the eigenvalues of the covariances, (T, D) and descending, and the measures, (T,); NaN if not finite.

    Args:
        features: T of them, each (N, D).
    """
    samples, dimensions = features[0].shape
    centered, raw, spread = zip(
        *(_moments(each.to(features[0].device, non_blocking=True)) for each in features), strict=True
    )
    # both kinds of spectra in one batch: on a GPU one decomposition, and one wait
    values_TD, squares_TD = _eigenvalues(torch.stack([*centered, *raw]), dimensions).chunk(2)
    values_TD = values_TD / max(samples - 1, 1)
    return values_TD, {
        "rank": effective_rank(values_TD),
        "rankme": _rankme(squares_TD[:, : min(samples, dimensions)].sqrt()),
        "participation_ratio": values_TD.sum(dim=1).square() / values_TD.square().sum(dim=1),
        "stable_rank": values_TD.sum(dim=1) / values_TD[:, 0],
        "alpha_req": _alpha_req(values_TD),
        "feature_std": torch.stack(spread),
    }


def singular_values(features: Tensor) -> Tensor:
    """Return the singular values of the centered covariance of features (N, D) in float64, descending, shape (D,).

    NaN everywhere if a feature is not finite.
    """
    return measures([features])[0][0]


def _moments(features_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the products of centered and of raw columns, and the deviation of normalized rows, in float64.

    Products of rows, which have the same eigenvalues but for zeros, where there are less rows than columns.
    """
    device = "cpu" if features_ND.device.type == "mps" else features_ND.device  # no float64 there
    features_ND = features_ND.to(device, torch.float64)
    samples, dimensions = features_ND.shape
    mean_D = features_ND.mean(dim=0)
    centered_ND = features_ND - mean_D
    size_N1 = torch.linalg.vector_norm(features_ND, dim=1, keepdim=True)
    spread = (features_ND / torch.where(size_N1 == 0, 1, size_N1)).std(dim=0, correction=0).mean()
    if samples < dimensions:
        return centered_ND @ centered_ND.T, features_ND @ features_ND.T, spread
    gram_DD = centered_ND.T @ centered_ND
    return gram_DD, gram_DD + samples * mean_D.outer(mean_D), spread


def _eigenvalues(matrices: Tensor, number: int) -> Tensor:
    """Return the eigenvalues of Gram matrices (..., K, K), descending, and zeros up to their number, (..., number)."""
    finite = matrices.isfinite().all(dim=-1).all(dim=-1, keepdim=True)
    values = torch.linalg.eigvalsh(torch.where(finite[..., None], matrices, 0)).flip(-1).clamp_min(0)
    return torch.where(finite, pad(values, (0, number - values.shape[-1])), torch.nan)


def effective_rank(values: Tensor) -> Tensor:
    """Return exp(entropy) of singular values (..., D) over their sum (Roy and Vetterli, 2007); NaN if all are zero."""
    return torch.special.entr(values / values.sum(dim=-1, keepdim=True)).sum(dim=-1).exp()


def _rankme(values_TK: Tensor) -> Tensor:
    return torch.special.entr(values_TK / values_TK.sum(dim=1, keepdim=True) + 1e-7).sum(dim=1).exp()


def _alpha_req(values_TD: Tensor) -> Tensor:
    dimensions = values_TD.shape[1]
    rank_D = torch.arange(1, dimensions + 1, device=values_TD.device, dtype=values_TD.dtype)
    known_TD = values_TD > values_TD[:, :1] * dimensions * torch.finfo(torch.float32).eps ** 2  # not rounding alone
    weight_TD = (known_TD & (rank_D >= FIRST) & (rank_D <= LAST)) / rank_D
    y_TD = torch.where(weight_TD > 0, values_TD, 1).log()
    enough_T = (weight_TD > 0).sum(dim=1) >= 3
    mean_T = (weight_TD * rank_D.log()).sum(dim=1) / torch.where(enough_T, weight_TD.sum(dim=1), torch.nan)
    x_TD = rank_D.log() - mean_T[:, None]
    return -(weight_TD * x_TD * y_TD).sum(dim=1) / (weight_TD * x_TD.square()).sum(dim=1)
