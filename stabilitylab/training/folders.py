"""Which image files a folder holds, and which are for training and which are held out.

Three forms are understood: `train/<class>/*` beside `val/<class>/*`; one folder of class folders, split here; and
images alone, without classes.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from stabilitylab.errors import InputError

__all__ = ["IMAGE_SUFFIXES", "Listing", "listed", "read_folder"]

IMAGE_SUFFIXES = frozenset(
    ("avif", "bmp", "gif", "jp2", "jpe", "jpeg", "jpg", "pbm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp")
)
TRAIN_NAMES = ("train", "training")
HELD_OUT_NAMES = ("val", "valid", "validation", "test")

log = logging.getLogger(__name__)


class Listing(NamedTuple):
    """The images of one split: their files, and their classes if they have any."""

    files: tuple[str, ...]
    labels: tuple[int, ...] | None
    """The place of each file's class in `classes`, or None without classes."""
    classes: tuple[str, ...]


def read_folder(path: Path) -> tuple[Listing, Listing | None]:
    """Return the images for training and those held out, or None for these if the folder does not separate them.

    Raises:
        InputError: if there are no images, a class has none, or the classes of the two splits differ.
    """
    names = {entry.name.lower(): entry for entry in _subfolders(path)}
    train = next((names[name] for name in TRAIN_NAMES if name in names), None)
    held_out = next((names[name] for name in HELD_OUT_NAMES if name in names), None)
    if train is None:
        if held_out is not None and not set(names) - set(HELD_OUT_NAMES):
            raise InputError(f"{path} holds {held_out.name!r} but no 'train' folder beside it.")
        return _read_split(path), None
    listing = _read_split(train)
    if held_out is None:
        return listing, None
    held_out_listing = _read_split(held_out)
    _check_same_classes(train, listing, held_out, held_out_listing)
    return listing, held_out_listing


def _read_split(folder: Path) -> Listing:
    """Return the images of a folder, each in the class of the subfolder that it is in, at any depth."""
    loose = [entry.path for entry in _entries(folder) if entry.is_file() and _is_image(entry.name)]
    per_class = {sub.name: list(_images_below(sub)) for sub in _subfolders(folder)}
    if not any(per_class.values()):
        if not loose:
            raise InputError(f"{folder} holds no images: {_contents(folder)}. Images end in {_suffixes()}.")
        return Listing(tuple(loose), None, ())
    empty = [name for name, files in per_class.items() if not files]
    if empty:
        counts = listed([f"{name} ({len(files):,})" for name, files in per_class.items() if files])
        raise InputError(f"Class folders of {folder} without images: {listed(empty)}. With images: {counts}.")
    if loose:
        log.warning("%s: %d images beside the class folders are left out, such as %s.", folder, len(loose), loose[0])
    if len(per_class) == 1 and any((folder / name / part).is_dir() for name in per_class for part in TRAIN_NAMES):
        raise InputError(
            f"The images of {folder} lie one folder deeper: data.path is {folder / next(iter(per_class))}."
        )
    classes = tuple(per_class)
    files = tuple(file for images in per_class.values() for file in images)
    labels = tuple(label for label, images in enumerate(per_class.values()) for _ in images)
    return Listing(files, labels, classes) if len(classes) > 1 else Listing(files, None, classes)


def _check_same_classes(train: Path, listing: Listing, held_out: Path, held_out_listing: Listing) -> None:
    if listing.labels is None:
        return
    if held_out_listing.labels is None and not held_out_listing.classes:
        raise InputError(
            f"{held_out} holds {len(held_out_listing.files):,} images without class folders, but {train} has the "
            f"classes {listed(listing.classes)}. Sort the images of {held_out.name!r} into folders of these names."
        )
    for one, other, gone in (
        (train, held_out, set(listing.classes) - set(held_out_listing.classes)),
        (held_out, train, set(held_out_listing.classes) - set(listing.classes)),
    ):
        if gone:
            raise InputError(
                f"Class folders of {one} that are missing in {other}: {listed(sorted(gone))}. "
                f"{other} holds {listed(sorted(entry.name for entry in _subfolders(other)))}."
            )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what the folder holds by name, without hidden files and what archivers and systems leave behind."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith((".", "__"))), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}.") from error


def _subfolders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(folder) if entry.is_dir()]


def _images_below(folder: Path) -> Iterable[str]:
    entries = _entries(folder)
    yield from (entry.path for entry in entries if entry.is_file() and _is_image(entry.name))
    for entry in entries:
        if entry.is_dir():
            yield from _images_below(Path(entry.path))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower().removeprefix(".") in IMAGE_SUFFIXES


def _contents(folder: Path) -> str:
    """Say in words what the folder holds instead of images."""
    entries = _entries(folder)
    if not entries:
        return "it is empty"
    folders = [entry.name for entry in entries if entry.is_dir()]
    suffixes = Counter(os.path.splitext(entry.name)[1] or entry.name for entry in entries if entry.is_file())
    kinds = [f"{count:,} x {suffix}" for suffix, count in suffixes.most_common()]
    return "it holds " + " and ".join(
        words
        for words in (folders and f"the folders {listed(folders)}", kinds and f"the files {listed(kinds)}")
        if words
    )


def _suffixes() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))


def listed(names: Iterable[str], most: int = 10) -> str:
    """Return the names with commas, the first few of them if they are many."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
