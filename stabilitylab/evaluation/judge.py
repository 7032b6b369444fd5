"""What a backbone has learned, as rows of a table: each number with its interval over images and over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator
from scipy.stats import binomtest
from torch import Tensor
from torch.nn.functional import normalize

from stabilitylab.errors import InputError
from stabilitylab.evaluation.features import Features
from stabilitylab.evaluation.knn import neighbors, vote
from stabilitylab.evaluation.linear import logistic_regression, train_linear
from stabilitylab.parameters import Parameters
from stabilitylab.stats import spectrum

__all__ = ["Judging", "judge", "over_seeds"]

CONFIDENCE = 0.95

Some = Field(min_length=1)
"""At least one of a list."""


class Judging(Parameters):
    """How a backbone is judged."""

    knn: bool = True
    """Whether nearest neighbors vote."""
    k: Annotated[tuple[PositiveInt, ...], Some] = (1, 10, 20, 100, 200)
    """Numbers of neighbors; those larger than the training set are left out."""
    temperature: Annotated[tuple[PositiveFloat, ...], Some] = (0.02, 0.07, 0.2)
    """A neighbor votes with exp(cosine / temperature)."""
    linear: bool = True
    """Whether linear classifiers are trained by SGD."""
    rates: Annotated[tuple[PositiveFloat, ...], Some] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    """Their learning rates per 256 samples."""
    epochs: PositiveInt = 90
    """Passes over the training images."""
    batch_size: PositiveInt = 1024
    """Samples in a step of the linear classifiers."""
    seeds: PositiveInt = 3
    """So many times the linear classifiers are trained, and the backbone fine-tuned."""
    logistic: bool = True
    """Whether a logistic regression is fitted, the quick way to nearly the same number."""
    ranks: bool = True
    """Whether effective ranks of the held-out representations are told."""
    rank_images: int = Field(10_000, ge=2)
    """At most so many images for the ranks."""
    validation: float = Field(0.1, gt=0, lt=1)
    """Part of the training images on which the best number of neighbors, temperature and learning rate are chosen."""
    finetune: bool = False
    """Whether the whole backbone is trained on with labels, which takes as long as a training of so many epochs."""
    finetune_epochs: PositiveInt = 100
    """Passes over the training images, of which a twentieth is warm-up."""
    finetune_rates: Annotated[tuple[PositiveFloat, ...], Some] = (1e-3, 4e-3, 1.6e-2)
    """Learning rates of the last layer per 256 samples, of AdamW; the best one is chosen as for the linear probe."""
    finetune_layer_decay: float = Field(0.65, gt=0, le=1)
    """Factor on it from each layer to the one before it."""
    finetune_drop_path: float = Field(0.1, ge=0, lt=1)
    """Stochastic depth of the last block."""
    finetune_weight_decay: float = Field(0.05, ge=0)
    """Weight decay, but of norms, biases, tokens and positions."""

    @field_validator("k", "temperature", "rates", "finetune_rates", mode="before")
    @classmethod
    def _one_is_enough(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _measures(self) -> Judging:
        if not (self.knn or self.linear or self.logistic or self.ranks or self.finetune):
            raise ValueError("knn, linear, logistic, ranks and finetune are all off: nothing would be measured")
        return self


def judge(train: Features, held_out: Features, judging: Judging, told: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return a row for each measure: its name, value, interval, and what it was chosen among.

    What is chosen (neighbors, temperature, learning rate) is chosen on a part of the training images, never on the
    held-out ones. Intervals of accuracies are Wilson's over images; ``sd_seeds`` is the deviation over seeds.

    Args:
        train: features of the training images.
        held_out: of the images that are judged.
        judging: what is measured.
        told: hears what is being done.

    Raises:
        InputError: if the training images are of fewer than two classes, or fewer than each number of neighbors.
    """
    if len(train.labels.unique()) < 2:
        raise InputError("the training images are all of one class; at least two are needed to judge a backbone")
    classes = int(torch.cat([train.labels, held_out.labels]).max()) + 1
    fit, check = _split(train, judging.validation)
    rows = []
    if judging.knn:
        told("nearest neighbors")
        rows.append(_knn(train, held_out, fit, check, classes, judging))
    if judging.linear:
        told(f"linear classifiers: {len(judging.rates)} learning rates, {judging.seeds} seeds, {judging.epochs} epochs")
        rows.append(_linear(train, held_out, fit, check, classes, judging))
    if judging.logistic:
        told("logistic regression")
        right = logistic_regression(train.values, train.labels, held_out.values) == held_out.labels
        rows.append(_accuracy("logistic regression", right, {}))
    if judging.ranks:
        rows += _ranks(held_out.values[: judging.rank_images])
    return rows


def _split(train: Features, part: float) -> tuple[Features, Features]:
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(0))
    number = max(1, round(part * len(order)))
    check, fit = order[:number], order[number:]
    return Features(train.values[fit], train.labels[fit]), Features(train.values[check], train.labels[check])


def _accuracy(name: str, right: Tensor, about: dict[str, Any]) -> dict[str, Any]:
    number, successes = len(right), int(right.sum())
    interval = binomtest(successes, number).proportion_ci(CONFIDENCE, method="wilson")
    row = {"measure": name, "value": successes / number, "low": float(interval.low), "high": float(interval.high)}
    return {**row, "images": number, **about}


def _knn(
    train: Features, held_out: Features, fit: Features, check: Features, classes: int, judging: Judging
) -> dict[str, Any]:
    ks = [each for each in judging.k if each <= len(fit.labels)]
    if not ks:
        raise InputError(
            f"evaluate.k is {list(judging.k)}, but no more than {len(fit.labels)} training images can be neighbors, as "
            "the others choose among these numbers"
        )
    grid = [(k, temperature) for k in ks for temperature in judging.temperature]

    def right(bank: Features, queries: Features) -> dict[tuple[int, float], Tensor]:
        found = neighbors(normalize(queries.values, dim=1), normalize(bank.values, dim=1), max(ks))
        voted = vote(found[0], bank.labels[found[1]], classes, grid)
        return {key: value == queries.labels for key, value in voted.items()}

    checked = right(fit, check)
    chosen = max(grid, key=lambda key: float(checked[key].float().mean()))
    scores = right(train, held_out)
    every = [{"k": k, "temperature": t, "value": float(scores[k, t].float().mean())} for k, t in grid]
    return _accuracy("kNN", scores[chosen], {"k": chosen[0], "temperature": chosen[1], "grid": every})


def _linear(
    train: Features, held_out: Features, fit: Features, check: Features, classes: int, judging: Judging
) -> dict[str, Any]:
    options: dict[str, int] = {"epochs": judging.epochs, "batch_size": judging.batch_size}

    def right(learn: Features, look: Features, rates: Sequence[float], seed: int) -> Tensor:
        weight_RDC, bias_RC = train_linear(learn.values, learn.labels, classes, rates, seed=seed, **options)
        return (look.values @ weight_RDC + bias_RC[:, None]).argmax(dim=2) == look.labels

    scores = right(fit, check, judging.rates, 0).float().mean(dim=1)
    rate = judging.rates[int(scores.argmax())]
    found = [right(train, held_out, [rate], seed)[0] for seed in range(judging.seeds)]
    grid = dict(zip(map(str, judging.rates), scores.tolist(), strict=True))
    return over_seeds("linear probe", found, {"rate": rate, "grid": grid})


def over_seeds(name: str, right: Sequence[Tensor], about: dict[str, Any]) -> dict[str, Any]:
    """Return the row of what was trained with several seeds; the interval is over images, of the first one.

    Args:
        name: of the measure.
        right: which images are classified rightly, shape (N,), with each seed.
        about: what the row says besides.
    """
    means = torch.stack([each.float().mean() for each in right])
    sd = float(means.std()) if len(right) > 1 else None
    row = _accuracy(name, right[0], about)
    return {**row, "seeds": len(right), "mean_seeds": float(means.mean()), "sd_seeds": sd}


def _ranks(features: Tensor) -> list[dict[str, Any]]:
    values = features.double().numpy()
    centered = values - values.mean(axis=0)
    eigenvalues = np.maximum(np.linalg.eigvalsh(centered.T @ centered / max(len(values) - 1, 1))[::-1], 0.0)
    found = {
        "effective rank": spectrum.effective_rank(eigenvalues),
        "RankMe": spectrum.rankme(np.linalg.svd(values, compute_uv=False)),
        "participation ratio": spectrum.participation_ratio(eigenvalues),
    }
    size = {"images": len(values), "dimensions": values.shape[1]}
    return [{"measure": name, "value": float(value), **size} for name, value in found.items()]
