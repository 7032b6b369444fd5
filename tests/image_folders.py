"""Folders of real photographs in pieces, for the tests of what reads them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs
from sklearn.datasets import load_sample_image

from stabilitylab.errors import InputError
from stabilitylab.training.data import Data, open_dataset


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def patches(folder: Path, photograph: np.ndarray, num: int, suffix: str = "png") -> None:
    """Write pieces of a photograph of different sizes as image files."""
    for i in range(num):
        save(folder / f"{i:03}.{suffix}", photograph[i * 5 : i * 5 + 40 + i, i * 7 : i * 7 + 50])


@pytest.fixture
def folder(tmp_path):
    """Two classes, split in train and val: pieces of an astronaut and of a flower."""
    for split, num in (("train", 12), ("val", 4)):
        patches(tmp_path / split / "astronaut", photographs.astronaut(), num)
        patches(tmp_path / split / "flower", load_sample_image("flower.jpg"), num, "jpg")
    return tmp_path


def opened(path, **parameters):
    return open_dataset(Data(path=path, **({"batch_size": 2} | parameters)))


def names(images, root):
    return [str(Path(file).relative_to(root)) for file in images.files]


# The digits.


def error(path, **parameters):
    with pytest.raises(InputError) as caught:
        opened(path, **parameters)
    return str(caught.value)
