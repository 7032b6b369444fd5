"""The images of a run: found, named, split into training and held-out ones, and ready to be read.

Shape suffixes: N images, C channels, H and W height and width.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from stabilitylab.errors import InputError
from stabilitylab.parameters import Parameters
from stabilitylab.training import archives
from stabilitylab.training.folders import Listing, listed, read_folder
from stabilitylab.training.images import BrokenImages, Images, stratified, subset

__all__ = ["Data", "Dataset", "open_dataset"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GRAY_MEAN, GRAY_STD = (0.449,), (0.226,)
FILE_SIZE = 224

log = logging.getLogger(__name__)


class Data(Parameters):
    """Which images to train on, and how they are read."""

    path: Path | None = None
    """Folder of images, or of CIFAR, STL10 or ImageNet; None for the 1,797 handwritten digits of scikit-learn."""
    format: Literal["auto", "digits", "folder", "cifar10", "cifar100", "stl10", "imagenet"] = "auto"
    """What the folder holds; 'auto' looks."""
    batch_size: int = Field(256, ge=2)
    """Images in a batch, over all processes together."""
    image_size: int | None = Field(None, ge=4)
    """Height and width of a view in pixels; None for the size of the images (8, 32, 96), or 224 for image files."""
    channels: Literal[1, 3] | None = None
    """1 for gray and 3 for color images; None for 1 with digits and 3 with everything else."""
    workers: int = Field(2, ge=0)
    """Processes that decode image files; images in memory need none. The views do not depend on it."""
    held_out_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the images to hold out where the data has no split of its own; always the same ones, of each class."""
    bank_images: int = Field(2048, ge=1)
    """At most so many labeled training images make the fixed bank in which the kNN monitor looks for neighbors."""
    held_out_images: int = Field(1024, ge=1)
    """At most so many of the held-out images are looked at while training."""
    broken_limit: int = Field(20, ge=0)
    """So many unreadable images are named and skipped; one more ends the run."""

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        """Let a run that is resumed from elsewhere find its images."""
        return None if path is None else path.expanduser().absolute()


@dataclass(frozen=True)
class Dataset:
    """The images of a run, with what is needed to read them."""

    data: Data
    name: str
    train: Images
    held_out: Images
    classes: tuple[str, ...]
    image_size: int
    channels: int
    mean: tuple[float, ...]
    """Of each channel, on a scale from 0 to 1; subtracted from the views."""
    std: tuple[float, ...]
    """Of each channel; the views are divided by it."""
    broken: BrokenImages

    @property
    def unlabeled(self) -> str | None:
        """The sentence that says why there are no labels and so no kNN monitor, or None if there are."""
        if self.train.labels is not None and self.held_out.labels is not None:
            return None
        return f"{self.name} has no classes (images in two or more class folders), so the kNN monitor is not available."

    @property
    def steps_per_epoch(self) -> int:
        """How many whole batches the training images make."""
        return len(self.train) // self.data.batch_size


def open_dataset(data: Data) -> Dataset:
    """Find the images and return them split, without reading image files.

    Raises:
        InputError: if the folder cannot be used, or holds fewer training images than one batch.
    """
    kind = _kind(data)
    path = data.path.expanduser().absolute() if data.path else Path()
    classes: tuple[str, ...]
    if kind in ("folder", "imagenet"):
        listings = archives.read_imagenet(path) if kind == "imagenet" else read_folder(path)
        dataset = _from_files(data, path, *listings)
    else:
        if kind == "digits":
            pixels, labels, classes = _digits()
            train, held_out = _split(Images(pixels, (), labels), data.held_out_fraction)
        else:
            train_arrays, held_out_arrays, classes = archives.read_arrays(kind, path)
            train = Images(train_arrays[0], (), train_arrays[1])
            held_out = Images(held_out_arrays[0], (), held_out_arrays[1])
        dataset = _from_arrays(data, kind, train, held_out, classes)
    if not len(dataset.train):
        raise InputError(
            f"{dataset.name} has {len(dataset.held_out)} image, which is held out: none is left to train on."
        )
    if len(dataset.train) < data.batch_size:
        raise InputError(
            f"{dataset.name} has {len(dataset.train):,} training images, fewer than one batch: data.batch_size is "
            f"{data.batch_size:,}, and at most {len(dataset.train):,} is possible."
        )
    if dataset.unlabeled:
        log.warning(dataset.unlabeled)
    return dataset


def _kind(data: Data) -> str:
    """Return the format with 'auto' resolved, once it is clear that the folder is there."""
    if data.path is None:
        if data.format not in ("auto", "digits"):
            raise InputError(f"data.format={data.format} needs data.path, the folder that holds the images.")
        return "digits"
    if data.format == "digits":
        raise InputError(f"data.format=digits comes with scikit-learn and takes no data.path, but it is {data.path}.")
    path = data.path.expanduser().absolute()
    if path.is_file():
        raise InputError(f"{path} is a file; data.path is a folder of images (unpack an archive first).")
    if not path.is_dir():
        above = next(parent for parent in path.parents if parent.is_dir())
        raise InputError(
            f"{path} does not exist. {above} holds {listed(sorted(p.name for p in above.iterdir())) or 'nothing'}."
        )
    return archives.detect(path) if data.format == "auto" else data.format


def _digits() -> tuple[Tensor, Tensor, tuple[str, ...]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels_NHW = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    classes = tuple(str(name) for name in digits.target_names)
    return torch.from_numpy(pixels_NHW)[:, None], torch.from_numpy(digits.target.astype(np.int64)), classes


def _from_arrays(data: Data, name: str, train: Images, held_out: Images, classes: tuple[str, ...]) -> Dataset:
    channels = data.channels or (1 if name == "digits" else 3)
    train, held_out = (replace(split, pixels=_with_channels(split.pixels, channels)) for split in (train, held_out))
    pixels_NCHW = cast(Tensor, train.pixels)
    # Of the training images alone, from how often each of the 256 values occurs: exact, and without a float copy.
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(channels):
        counts = torch.bincount(pixels_NCHW[:, channel].flatten(), minlength=256).double()
        mean.append(float(counts @ values / counts.sum()))
        std.append(max(float(counts @ (values - mean[-1]) ** 2 / counts.sum()) ** 0.5, 1e-3))
    size = data.image_size or pixels_NCHW.shape[-1]
    broken = BrokenImages(data.broken_limit, None)
    return Dataset(data, name, train, held_out, classes, size, channels, tuple(mean), tuple(std), broken)


def _with_channels(pixels_NCHW: Tensor | None, channels: int) -> Tensor:
    from torchvision.transforms.v2.functional import grayscale_to_rgb, rgb_to_grayscale

    return rgb_to_grayscale(pixels_NCHW) if channels == 1 else grayscale_to_rgb(pixels_NCHW)  # or as they are


def _from_files(data: Data, path: Path, train: Listing, held_out: Listing | None) -> Dataset:
    labeled = train.labels is not None and (held_out is None or held_out.labels is not None)
    splits = [Images(None, x.files, torch.tensor(x.labels) if labeled else None) for x in (train, held_out) if x]
    if held_out is None:
        splits = list(_split(splits[0], data.held_out_fraction))
    classes = train.classes if labeled else ()
    channels = data.channels or 3
    mean, std = (GRAY_MEAN, GRAY_STD) if channels == 1 else (IMAGENET_MEAN, IMAGENET_STD)
    size = data.image_size or FILE_SIZE
    broken = BrokenImages(data.broken_limit, path)
    return Dataset(data, str(path), splits[0], splits[1], classes, size, channels, mean, std, broken)


def _split(images: Images, fraction: float) -> tuple[Images, Images]:
    """Return the images without and with the held-out ones, the same share of each class."""
    held_out = stratified(images.labels, len(images), max(1, round(len(images) * fraction)))
    train = np.setdiff1d(np.arange(len(images)), held_out)
    return subset(images, train), subset(images, held_out)
