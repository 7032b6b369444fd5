"""The images that a run is watched with: the same at every step, whole or cut in the middle, without augmentation.

Shape suffixes: N images, C channels, H and W height and width.
"""

from __future__ import annotations

import math
from contextlib import closing
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stabilitylab.errors import InputError
from stabilitylab.training.colors import normalized
from stabilitylab.training.data import Dataset
from stabilitylab.training.decoding import UnreadableImageError, read_image
from stabilitylab.training.images import Images, stratified
from stabilitylab.training.workers import in_workers

__all__ = ["FixedImages", "fixed_images", "images_at"]

EVALUATION_CROP = 0.875
"""Share of the shorter side of an image file that the central crop of the evaluation shows (224 of 256 pixels)."""


class FixedImages(NamedTuple):
    """Images that are the same at every step, without augmentation."""

    images: Tensor
    """Normalized, float32, shape (N, C, S, S), on the device."""
    labels: Tensor | None
    """int64, shape (N,), on the host; None if the data has no labels."""
    indices: Tensor
    """Rows of the split that they come from, int64, shape (N,)."""
    broken: list[str]
    """Names of the images left out because they cannot be read."""


def fixed_images(
    dataset: Dataset, which: Literal["bank", "held_out"], device: torch.device | str = "cpu"
) -> FixedImages:
    """Return the labeled training images of the bank, or the held-out images, resized and cut in the middle.

    They are chosen once for all, of each class in proportion. Without labels they are any images of the split.

    Raises:
        InputError: if too many cannot be read, or none can.
    """
    images = dataset.train if which == "bank" else dataset.held_out
    most = dataset.data.bank_images if which == "bank" else dataset.data.held_out_images
    rows = stratified(images.labels, len(images), most)
    found = images_at(dataset, images, rows, device)
    if not len(found.images):
        raise InputError(f"None of the {len(rows)} {which.replace('_', '-')} images of {dataset.name} can be read.")
    return found


def images_at(dataset: Dataset, images: Images, rows: np.ndarray, device: torch.device | str = "cpu") -> FixedImages:
    """Return some images of a split, resized and cut in the middle; those that cannot be read are left out.

    Raises:
        InputError: if too many cannot be read.
    """
    new: list[str] = []
    if images.pixels is not None:
        pixels = _shown(images.pixels[rows], dataset.image_size)
    else:
        reader = Reader(images.files, dataset.channels, dataset.image_size)
        workers = dataset.data.workers if len(rows) >= 64 else 0
        shown, readable = [], []
        with closing(in_workers(reader.read, rows.tolist(), workers)) as results:
            for row, result in zip(rows, results, strict=True):
                if isinstance(result, str):
                    new += dataset.broken.add({images.files[row]: result})
                else:
                    shown.append(result)
                    readable.append(row)
        size = dataset.image_size
        nothing = torch.empty(0, dataset.channels, size, size, dtype=torch.uint8)
        pixels, rows = torch.stack(shown) if shown else nothing, np.array(readable, dtype=np.int64)
    indices = torch.from_numpy(rows)
    views = normalized(pixels.to(device).float().div_(255), dataset.mean, dataset.std)
    return FixedImages(views, images.labels_of(indices), indices, new)


class Reader:
    """Reads image files for the evaluation."""

    def __init__(self, files: tuple[str, ...], channels: int, size: int) -> None:
        self.files, self.channels, self.size = files, channels, size

    def read(self, row: int) -> Tensor | str:
        """Return the middle of the image, uint8, shape (C, S, S), or the reason why it cannot be read."""
        from torchvision.transforms.v2.functional import pil_to_tensor

        try:
            image = read_image(self.files[row], self.channels, math.ceil(self.size / EVALUATION_CROP))
        except UnreadableImageError as error:
            return str(error)
        # Cut and resized in one go: the same as resizing and cutting, without the memory for a very long image.
        side = min(image.size) * EVALUATION_CROP
        left, top = ((length - side) / 2 for length in image.size)
        box = (left, top, left + side, top + side)
        return pil_to_tensor(image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box))


def _shown(pixels_NCHW: Tensor, size: int) -> Tensor:
    """Return images in memory whole, as they are if they have the size, else resized."""
    from torchvision.transforms.v2 import functional

    return functional.center_crop(functional.resize(pixels_NCHW, [size], antialias=True), [size])
