"""The stream of batches: which images a step sees, in which two views, as a pure function of the seed and the step.

Shape suffixes: N images, C channels, H and W height and width, S side of a view.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from functools import lru_cache
from typing import NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stabilitylab.errors import InputError
from stabilitylab.training.augment import Augment, Draw, crop, draw, recolor
from stabilitylab.training.colors import normalized
from stabilitylab.training.crops import crop_boxes
from stabilitylab.training.data import Dataset
from stabilitylab.training.decoding import UnreadableImageError, read_image
from stabilitylab.training.folders import listed
from stabilitylab.training.randomness import permutation
from stabilitylab.training.workers import in_workers

__all__ = ["Batch", "batches", "epoch_order"]


class Batch(NamedTuple):
    """What one step of one process sees."""

    step: int
    indices: Tensor
    """Rows of the training images, int64, shape (N,)."""
    labels: Tensor | None
    """int64, shape (N,), -1 where unknown; None if the data has no labels."""
    views: tuple[Tensor, ...]
    """Two views of each image, and small crops after them, if any: normalized, float32, (N, C, S, S), on the device."""
    broken: list[str]
    """Names of the images found unreadable in this step for the first time; the next one stands in their place."""


class Crops(NamedTuple):
    """A batch as the workers hand it over."""

    step: int
    indices: Tensor
    pixels: tuple[Tensor, ...]
    """Crops of all views, uint8, shape (N, C, S, S); empty if no image of the batch can be read."""
    broken: dict[str, str]


def batches(
    dataset: Dataset,
    augment: Augment,
    *,
    seed: int,
    steps: int,
    first_step: int = 0,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
) -> Generator[Batch]:
    """Return the batches of the steps first_step ... steps - 1; close the generator to end its workers.

    Each epoch goes through the training images in an order of its own and drops the last incomplete batch. A batch
    depends on nothing but the images, the parameters, the seed and its step; each rank has its slice of it.

    Raises:
        InputError: if the batch cannot be divided among the processes, or, later, if too many images are unreadable.
    """
    if dataset.data.batch_size % world:
        raise InputError(f"data.batch_size={dataset.data.batch_size} cannot be divided among {world} processes.")
    device = torch.device(device)
    part = Part(dataset, augment, seed, rank, world)
    if dataset.train.pixels is not None:
        return (_batch_in_memory(part, step, device) for step in range(first_step, steps))
    return _batches_of_files(part, range(first_step, steps), device)


class Part:
    """One rank's part of the batches."""

    def __init__(self, dataset: Dataset, augment: Augment, seed: int, rank: int, world: int) -> None:
        self.dataset, self.augment, self.seed = dataset, augment, seed
        size = dataset.data.batch_size // world
        self.start, self.stop = rank * size, (rank + 1) * size
        # So large that the smallest crop still has the pixels of a view.
        self.least = max(
            math.ceil(
                augment.side(view, dataset.image_size) / math.sqrt(augment.scale(view)[0] * augment.crop_ratio[0])
            )
            for view in augment.views
        )

    def indices(self, step: int) -> np.ndarray:
        """Return the rows of the training images in the whole batch of a step, int64, shape (batch_size,)."""
        epoch, place = divmod(step, self.dataset.steps_per_epoch)
        size = self.dataset.data.batch_size
        return epoch_order(self.seed, epoch, len(self.dataset.train))[place * size : (place + 1) * size]

    def draw(self, step: int, view: int) -> Draw:
        """Return the parameters of one view of this rank's images."""
        whole = draw(self.augment, self.seed, step, view, self.dataset.data.batch_size)
        return whole.rows(self.start, self.stop)

    def read(self, step: int) -> Crops:
        """Decode this rank's image files of a step and cut all views; an unreadable one is replaced by the next."""
        drawn = [self.draw(step, view) for view in self.augment.views]
        order = self.indices(step)
        broken: dict[str, str] = {}
        kept: list[int] = []
        views: list[list[Tensor]] = [[] for _ in drawn]
        for row in range(self.stop - self.start):
            found = self._next_readable(order, self.start + row, broken)
            if found is None:
                return Crops(step, torch.empty(0, dtype=torch.int64), (), broken)
            kept.append(found[0])
            for view, each in enumerate(drawn):
                views[view].append(self._cut(found[1], each.rows(row, row + 1), view))
        return Crops(step, torch.tensor(kept), tuple(map(torch.stack, views)), broken)

    def _next_readable(self, order: np.ndarray, place: int, broken: dict[str, str]) -> tuple[int, Image.Image] | None:
        """Return the first image of the whole batch from a place on that can be read, and note those that cannot."""
        for offset in range(len(order)):
            index = int(order[(place + offset) % len(order)])
            file = self.dataset.train.files[index]
            if file in broken:
                continue
            try:
                return index, read_image(file, self.dataset.channels, self.least)
            except UnreadableImageError as error:
                broken[file] = str(error)
        return None

    def _cut(self, image: Image.Image, drawn: Draw, view: int) -> Tensor:
        """Return one crop, mirrored if drawn, uint8, shape (C, S, S)."""
        from torchvision.transforms.v2 import functional

        box = crop_boxes(drawn.crop, image.height, image.width, self.augment.scale(view), self.augment.crop_ratio)
        side = self.augment.side(view, self.dataset.image_size)
        cut = functional.resized_crop(image, *box[0].tolist(), size=[side, side], antialias=True)
        return functional.pil_to_tensor(functional.horizontal_flip(cut) if drawn.flip[0] else cut)


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Return the order in which an epoch goes through the training images, int64, shape (num_images,)."""
    order = permutation((seed, 0, epoch), num_images)
    order.setflags(write=False)
    return order


def _views(part: Part, step: int, crops: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Return all views of a step from their crops, float between 0 and 1 on the device."""
    dataset = part.dataset
    return tuple(
        normalized(recolor(cropped, part.draw(step, view), part.augment), dataset.mean, dataset.std)
        for view, cropped in enumerate(crops)
    )


def _batch_in_memory(part: Part, step: int, device: torch.device) -> Batch:
    train = part.dataset.train
    indices = torch.from_numpy(part.indices(step)[part.start : part.stop].copy())
    images = cast(Tensor, train.pixels)[indices].to(device, non_blocking=True).float().div_(255)
    augment, size = part.augment, part.dataset.image_size
    crops = (crop(images, part.draw(step, view), augment, augment.side(view, size), view) for view in augment.views)
    return Batch(step, indices, train.labels_of(indices), _views(part, step, crops), [])


def _batches_of_files(part: Part, steps: Sequence[int], device: torch.device) -> Generator[Batch]:
    # The workers decode and cut, which needs each image at its own size; the device does the rest for all together.
    pinned = device.type == "cuda"
    with closing(in_workers(part.read, steps, part.dataset.data.workers, pinned=pinned)) as reads:
        for read in reads:
            yield _batch_of_files(part, read, device)


def _batch_of_files(part: Part, read: Crops, device: torch.device) -> Batch:
    new = part.dataset.broken.add(read.broken)
    if not read.pixels:
        raise InputError(
            f"None of the {len(read.broken)} images of step {read.step} can be read: {listed(read.broken)}."
        )
    crops = (pixels.to(device, non_blocking=True).float().div_(255) for pixels in read.pixels)
    return Batch(
        read.step, read.indices, part.dataset.train.labels_of(read.indices), _views(part, read.step, crops), new
    )
