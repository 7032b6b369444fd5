"""The images of one split: in memory or as files, some of them chosen, some of them broken."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from stabilitylab.errors import InputError
from stabilitylab.training.folders import listed
from stabilitylab.training.randomness import permutation

__all__ = ["BrokenImages", "Images", "stratified", "subset"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Images:
    """The images of one split, in memory or as files."""

    pixels: Tensor | None
    """uint8, shape (N, C, H, W), or None if they are files."""
    files: tuple[str, ...]
    labels: Tensor | None
    """int64, shape (N,); -1 where an image has no label; None if no image has one."""

    def __len__(self) -> int:
        return len(self.files) if self.pixels is None else len(self.pixels)

    def labels_of(self, rows: Tensor) -> Tensor | None:
        """Return the labels of some of the images, or None if there are none."""
        return None if self.labels is None else self.labels[rows]


class BrokenImages:
    """The images that could not be read so far: each is told once, and too many are an error."""

    def __init__(self, limit: int, root: Path | None) -> None:
        self.limit = limit
        self.reasons: dict[str, str] = {}
        self._root = root

    def add(self, found: dict[str, str]) -> list[str]:
        """Take up files with the reasons why they cannot be read and return the names of those not known before.

        Raises:
            InputError: if there are now more than the limit.
        """
        new = {self._name(file): reason for file, reason in found.items() if self._name(file) not in self.reasons}
        self.reasons |= new
        for name, reason in new.items():
            log.warning("Skipped an image that cannot be read (%d so far): %s: %s", len(self.reasons), name, reason)
        if len(self.reasons) > self.limit:
            names = listed([f"{name} ({reason})" for name, reason in self.reasons.items()])
            raise InputError(
                f"{len(self.reasons)} images cannot be read, more than data.broken_limit={self.limit}: {names}. "
                "Remove or repair them, or raise the limit."
            )
        return list(new)

    def _name(self, file: str) -> str:
        return os.path.relpath(file, self._root) if self._root else file


def subset(images: Images, rows: np.ndarray) -> Images:
    """Return some of the images."""
    return Images(
        None if images.pixels is None else images.pixels[rows],
        tuple(images.files[row] for row in rows) if images.files else (),
        None if images.labels is None else images.labels[rows],
    )


def stratified(labels: Tensor | None, num_images: int, num_chosen: int) -> np.ndarray:
    """Choose images at random, always the same ones, from each class in proportion to its size.

    Args:
        labels: of each image, -1 for those that are not to be chosen, shape (N,); None for a single class.
        num_images: N.
        num_chosen: how many; all there are if these are fewer.

    Returns:
        Their rows in ascending order, int64.
    """
    label_N = np.zeros(num_images, np.int64) if labels is None else labels.numpy()
    order_N = permutation((0,), num_images)
    order_N = order_N[label_N[order_N] >= 0]
    order_N = order_N[np.argsort(label_N[order_N], kind="stable")]
    _, start, count = np.unique(label_N[order_N], return_index=True, return_counts=True)
    # The place of each image within its class, between 0 and 1: below a share p lie that share of every class.
    place_N = (np.arange(len(order_N)) - np.repeat(start, count) + 0.5) / np.repeat(count, count)
    return np.sort(order_N[np.argsort(place_N, kind="stable")][:num_chosen])
