"""Fine-tuning: the whole backbone is trained on with labels, and what it then recognizes of the held-out images.

The recipe is that of a ViT-B in He et al., 2022, Masked autoencoders are scalable vision learners (CVPR), without its
mixing of images, and with the augmentation of the configuration.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stabilitylab import plugins
from stabilitylab.errors import InputError
from stabilitylab.evaluation.features import CHUNK
from stabilitylab.phrasing import count
from stabilitylab.settings import flatten
from stabilitylab.training.config import Config, resolve
from stabilitylab.training.data import Dataset, open_dataset
from stabilitylab.training.distributed import Ranks
from stabilitylab.training.fixed_images import images_at
from stabilitylab.training.images import stratified, subset
from stabilitylab.training.loop import prepare, train

if TYPE_CHECKING:
    from stabilitylab.evaluation.judge import Judging

__all__ = ["finetune"]

FEWEST_STEPS = 8
"""A small set is seen in so many batches an epoch at least."""


def finetune(
    weights: Path,
    config: Config,
    judging: Judging,
    ranks: Ranks,
    told: Callable[[str], None],
) -> tuple[list[Tensor], dict[str, Any]]:
    """Return which of the held-out images are classified rightly with each seed, shape (N,), and how it was trained.

    Args:
        weights: a run, a checkpoint folder, or a published checkpoint.
        config: the images and the backbone; augmented as these say.
        judging: how; a learning rate is chosen where there are several, on a part of the training images.
        ranks: the process.
        told: hears how far it is.

    Raises:
        InputError: if it makes no sense for this backbone, or no loss stays finite.
    """
    data = open_dataset(config.data.model_copy(update={"batch_size": 1}))
    batch_size = max(1, min(config.data.batch_size, len(data.train) // FEWEST_STEPS))
    recipe = _kept(config) | _recipe(weights, judging, batch_size)
    rates, grid = judging.finetune_rates, {}
    passes = count(judging.finetune_epochs, "epoch")
    if len(rates) > 1:
        check = stratified(data.train.labels, len(data.train), max(1, round(judging.validation * len(data.train))))
        fit = np.setdiff1d(np.arange(len(data.train)), check)
        parts = replace(data, train=subset(data.train, fit), held_out=subset(data.train, check))
        for number, rate in enumerate(rates, start=1):
            told(f"fine-tuning: {passes}, rate {rate:g} ({number} of {len(rates)})")
            right = _trained(config.preset, recipe, rate, 0, parts, ranks, told, must=False)
            grid[str(rate)] = float(right.float().mean()) if len(right) else 0.0
    rate = max(rates, key=lambda each: grid.get(str(each), 0.0))
    found = []
    for seed in range(judging.seeds):
        told(f"fine-tuning: {passes}, rate {rate:g}, seed {seed} ({seed + 1} of {judging.seeds})")
        found.append(_trained(config.preset, recipe, rate, seed, data, ranks, told))
    return found, {"rate": rate, "grid": grid, "epochs": judging.finetune_epochs, "batch_size": batch_size}


def _trained(
    preset: str,
    recipe: Mapping[str, Any],
    rate: float,
    seed: int,
    data: Dataset,
    ranks: Ranks,
    told: Callable[[str], None],
    must: bool = True,
) -> Tensor:
    """Return which of the held-out images are classified rightly, empty if the loss left the finite and it may."""
    config = resolve(preset, recipe, {"optimizer.base_lr": rate, "train.seed": seed})
    setup = prepare(config, replace(data, data=config.data), ranks)
    with TemporaryDirectory() as folder:
        outcome = train(setup, Path(folder) / "run", _Progress(setup.total, told))
    if outcome.status == "interrupted":
        raise KeyboardInterrupt
    if outcome.status == "failed" and must:
        raise InputError(f"fine-tuning failed: {outcome.message}; smaller evaluate.finetune_rates may do")
    return torch.empty(0) if outcome.status == "failed" else _right(setup.method.eval(), data, ranks.device)


def _kept(config: Config) -> dict[str, Any]:
    """Return the settings of the images and the backbone, of which no part stays frozen."""
    settings = flatten({key: config.to_json()[key] for key in ("data", "augment", "model", "train")})
    left_out = ("augment.small_crop", "model.frozen", "model.patch_projection")
    return {
        name: value
        for name, value in settings.items()
        if (not name.startswith("train.") or name == "train.device")
        and not (value is None or name.startswith(left_out))
    }


def _recipe(weights: Path, judging: Judging, batch_size: int) -> dict[str, Any]:
    """Return what is different from a pretraining."""
    return {
        "method.name": "supervised",
        "augment.small_crops": 0,
        "model.drop_path": judging.finetune_drop_path,
        "data.batch_size": batch_size,
        "optimizer.name": "adamw",
        "optimizer.weight_decay": judging.finetune_weight_decay,
        "optimizer.decay_all": False,
        "optimizer.layer_decay": judging.finetune_layer_decay,
        "schedule.name": "cosine",
        "schedule.warmup_epochs": judging.finetune_epochs / 20,
        "train.epochs": judging.finetune_epochs,
        "train.initial": str(weights),
        "record.self_check": 0,
        "checkpoint.every": 0,
    } | {f"probes.{name}": False for name in plugins.names("probes")}


@torch.no_grad()
def _right(method: Any, dataset: Dataset, device: torch.device) -> Tensor:
    split, found = dataset.held_out, []
    for rows in np.array_split(np.arange(len(split)), -(-len(split) // CHUNK)):
        images = images_at(dataset, split, rows, device)
        if images.labels is not None:
            logits = method.projector(method.backbone(images.images)).cpu()
            found.append((logits.argmax(dim=1) == images.labels)[images.labels >= 0])
    return torch.cat(found)


class _Progress:
    """A reporter that says now and then how far the training is."""

    def __init__(self, total: int, told: Callable[[str], None], seconds: float = 10.0) -> None:
        self._total, self._told, self._seconds, self._said = total, told, seconds, time.monotonic()

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        if time.monotonic() - self._said >= self._seconds:
            self._said = time.monotonic()
            self._told(f"step {step + 1}/{self._total}  loss {numbers['loss']:.4f}")
