"""An image file of any kind as an RGB or gray picture, upright, 8 bits deep."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

__all__ = ["UnreadableImageError", "read_image"]

Picture = Image.Image


class UnreadableImageError(Exception):
    """A file that should be an image cannot be read; the message is the reason."""


def read_image(path: str | Path, channels: int, least: int) -> Picture:
    """Return the image turned as its EXIF data says, in mode RGB (3 channels) or L (1 channel).

    Transparent parts are laid over white, as a viewer shows them; 16 bits are scaled to 8; of an animation the
    first frame is taken.

    Args:
        path: of the file.
        channels: 3 or 1.
        least: so many pixels along each side are enough; a JPEG of twice or more is decoded at a half, a quarter or
            an eighth of its size, which is several times faster.

    Raises:
        UnreadableImageError: if the file is missing, no image, cut short or otherwise damaged.
    """
    try:
        # Remarks about odd metadata are of no use to anyone: what matters is whether the pixels can be read.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            image.draft(None, (least, least))
            return _in_mode(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes Pillow raise errors of more than a dozen kinds
        reason = str(error).replace(repr(str(path)), "it").replace(str(path), "it")
        raise UnreadableImageError(reason or type(error).__name__) from error


def _in_mode(image: Picture, mode: str) -> Picture:
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_8_bits(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != mode and image.mode not in ("L", "1"):
        image = image.convert("RGB")
    # Without this, an image that needs no conversion would be read only after its file is closed.
    image.load()
    return image if image.mode == mode else image.convert(mode)


def _to_8_bits(image: Picture) -> np.ndarray:
    """Return integers of up to 16 bits, or floats in 0 ... 1 or 0 ... 255, as 8 bits, shape (height, width)."""
    values = np.nan_to_num(np.asarray(image, np.float64))
    if image.mode == "F":
        values = values * 255 if values.max() <= 1 else values
    elif image.mode != "I" or values.max() > 255:
        values = values / 257
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
