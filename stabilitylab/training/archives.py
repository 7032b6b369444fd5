"""CIFAR-10, CIFAR-100, STL10 and ImageNet from a local folder through torchvision, which checks what it reads."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stabilitylab.errors import InputError
from stabilitylab.training.folders import Listing

__all__ = ["detect", "read_arrays", "read_imagenet"]

BASE_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "stl10": "stl10_binary"}
ARCHIVES = {
    "cifar10": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "stl10": "stl10_binary.tar.gz",
}
IMAGENET_MARKS = ("meta.bin", "ILSVRC2012_devkit_t12.tar.gz")

Split = tuple[Tensor, Tensor]
"""Pixels, uint8, (N, C, H, W), and labels, int64, (N,)."""


def detect(path: Path) -> str:
    """Return which of the known data sets the folder holds: their names as in `data.format`, or 'folder'."""
    found = [name for name, base in BASE_FOLDERS.items() if path.name == base or (path / base).is_dir()]
    if len(found) > 1:
        raise InputError(f"{path} holds {' and '.join(found)}: say which with data.format.")
    if found:
        return found[0]
    if any((path / mark).is_file() for mark in IMAGENET_MARKS):
        return "imagenet"
    packed = [archive for archive in ARCHIVES.values() if (path / archive).is_file()]
    if packed:
        raise InputError(f"{path} holds {packed[0]} as it was downloaded: unpack it there (tar xzf {packed[0]}).")
    return "folder"


def read_arrays(name: str, path: Path) -> tuple[Split, Split, tuple[str, ...]]:
    """Return training images, test images and class names of CIFAR-10, CIFAR-100 or STL10.

    STL10 trains on its labeled and unlabeled images together; the label of the unlabeled ones is -1.

    Raises:
        InputError: if files are missing or not the published ones.
    """
    from torchvision import datasets

    root = path.parent if path.name == BASE_FOLDERS[name] else path
    if name == "stl10":
        train = _open(name, path, lambda: datasets.STL10(root, split="train+unlabeled"))
        test = _open(name, path, lambda: datasets.STL10(root, split="test"))
        pixels = [torch.from_numpy(np.ascontiguousarray(split.data)) for split in (train, test)]
        labels = [torch.from_numpy(split.labels.astype(np.int64)) for split in (train, test)]
    else:
        opened = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
        train = _open(name, path, lambda: opened(root, train=True))
        test = _open(name, path, lambda: opened(root, train=False))
        pixels = [torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous() for split in (train, test)]
        labels = [torch.tensor(split.targets) for split in (train, test)]
    return (pixels[0], labels[0]), (pixels[1], labels[1]), tuple(train.classes)


def read_imagenet(path: Path) -> tuple[Listing, Listing]:
    """Return the files of ImageNet for training and for validation; torchvision unpacks its archives if needed.

    Raises:
        InputError: if files are missing or not the published ones.
    """
    from torchvision import datasets

    listings = []
    for split in ("train", "val"):
        opened = _open("imagenet", path, partial(datasets.ImageNet, path, split=split))
        files, labels = zip(*opened.samples, strict=True)
        listings.append(Listing(files, labels, tuple(names[0] for names in opened.classes)))
    return listings[0], listings[1]


def _open(name: str, path: Path, open_it: Callable[[], Any]) -> Any:
    """Open a data set of torchvision, which raises errors of many kinds for what is missing or damaged."""
    try:
        # The published CIFAR files hold pickles of an old numpy, about which a new one warns.
        with warnings.catch_warnings(action="ignore"):
            return open_it()
    except (OSError, RuntimeError, ValueError) as error:
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
        hint = (
            "the archives of ILSVRC2012 with their devkit (without the devkit, use data.format=folder)"
            if name == "imagenet"
            else f"the folder {BASE_FOLDERS[name]!r} with the published files, complete and unchanged"
        )
        raise InputError(f"{path} cannot be read as {name}: {error} Expected {hint}; it holds {held}.") from error
