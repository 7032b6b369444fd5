"""The two random views of self-supervised training, a whole batch at once, each image with its own parameters.

The parameters of a view are drawn on the host as a pure function of (seed, step, view), one row per image of the
global batch; the pixels are then worked on together on the device, without a loop over images and without waiting
for the device. Crops are in `crops`, the color operations in `colors`; here is their order, and what follows them.

Why not kornia, which has these as batched modules with correct boxes and colors: it draws one order of the color
operations for the whole batch where torchvision draws one for each image; its crop does not average when it shrinks
(an image shrunk from 512 to 32 pixels comes out 1.5 times as rough as torchvision's); it draws from the global
generator, so that neither a step nor the rows of one rank can be drawn alone; and it took 1.4 to 2.5 times as long
at 8, 32 and 224 pixels. The speed against torchvision's own pipeline is in `tests/benchmarks/augment_speed.py`.

Shape suffixes: N images, C channels, H and W height and width, S side of a view, K taps of a blur.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from stabilitylab.parameters import Parameters
from stabilitylab.training.colors import jitter, on_device, rows_on_device, to_gray
from stabilitylab.training.crops import ATTEMPTS, apply_along_axes, crop_boxes, crop_matrices
from stabilitylab.training.randomness import uniforms

__all__ = ["Augment", "Draw", "blur", "blur_kernel_size", "crop", "draw", "recolor"]


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the smallest value {bounds[0]} is above the largest {bounds[1]}")
    return bounds


Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Strength = Annotated[float, Field(ge=0)]


class Augment(Parameters):
    """What is done to an image to make a view of it; the defaults are those published for MoCo v3."""

    crop_scale: Annotated[tuple[Share, Share], AfterValidator(_ascending)] = (0.08, 1.0)
    """Smallest and largest share of the image's area that a crop covers."""
    crop_ratio: Annotated[tuple[Positive, Positive], AfterValidator(_ascending)] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio of a crop, width over height."""
    flip_probability: Probability = 0.5
    """How often a view is mirrored left to right; 0 for images whose meaning changes, such as digits."""
    jitter_probability: Probability = 0.8
    """How often the four color operations are applied, in an order drawn for each image."""
    brightness: Strength = 0.4
    """The brightness is multiplied by a factor between 1 - b (at least 0) and 1 + b."""
    contrast: Strength = 0.4
    """The distance from the image's mean gray is multiplied by a factor between 1 - c (at least 0) and 1 + c."""
    saturation: Strength = 0.2
    """The distance from each pixel's gray is multiplied by a factor between 1 - s (at least 0) and 1 + s."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """The hue is turned by at most this share of the color circle, in either direction."""
    gray_probability: Probability = 0.2
    """How often a view loses its color."""
    blur_sigma: Annotated[tuple[Positive, Positive], AfterValidator(_ascending)] = (0.1, 2.0)
    """Smallest and largest standard deviation of the Gaussian blur, in pixels of the view."""
    blur_probability: tuple[Probability, Probability] = (1.0, 0.1)
    """How often the first and the second view are blurred."""
    solarize_probability: tuple[Probability, Probability] = (0.0, 0.2)
    """How often the first and the second view are solarized: their bright pixels inverted."""
    solarize_threshold: Probability = 0.5
    """Pixels at least as bright as this are inverted, between 0 and 1."""
    small_crops: int = Field(0, ge=0)
    """Small crops beside the two views, for the methods that use them (swav, dino)."""
    small_crop_size: int | None = Field(None, ge=1)
    """Side of a small crop in pixels, a multiple of the patch size; by default half of that of a view."""
    small_crop_scale: Annotated[tuple[Share, Share], AfterValidator(_ascending)] = (0.05, 0.25)
    """Smallest and largest share of the image's area that a small crop covers."""
    small_blur_probability: Probability = 0.5
    """How often a small crop is blurred."""

    @property
    def views(self) -> range:
        """The numbers of the views: 0 and 1, and from 2 on the small crops."""
        return range(2 + self.small_crops)

    def side(self, view: int, size: int) -> int:
        """Return the side of a view in pixels, for views of a size."""
        return size if view < 2 else self.small_crop_size or size // 2

    def scale(self, view: int) -> tuple[float, float]:
        """Return the smallest and largest share of the image that a view covers."""
        return self.crop_scale if view < 2 else self.small_crop_scale


class Draw(NamedTuple):
    """The parameters of one view, a row per image, on the host."""

    crop: np.ndarray
    """What `crop_boxes` makes a box of once the image's size is known, uniform, shape (N, 2 * ATTEMPTS + 2)."""
    flip: np.ndarray
    """Whether the view is mirrored, shape (N,)."""
    factors: np.ndarray
    """Factors of brightness, contrast and saturation, and the turn of the hue, shape (N, 4)."""
    order: np.ndarray
    """The color operations in the order of their application, shape (N, 4)."""
    gray: np.ndarray
    """Whether the color is removed, shape (N,)."""
    blur: np.ndarray
    """Whether the view is blurred, shape (N,)."""
    sigma: np.ndarray
    """Standard deviation of its blur in pixels, shape (N,)."""
    solarize: np.ndarray
    """Whether it is solarized, shape (N,)."""

    def rows(self, start: int, stop: int) -> Draw:
        """Return the parameters of some of the images only."""
        return Draw(*(values[start:stop] for values in self))


def draw(augment: Augment, seed: int, step: int, view: int, num: int) -> Draw:
    """Draw the parameters of one view of the num images of a step, of two or of a small crop: always the same ones."""
    crop_columns = 2 * ATTEMPTS + 2
    u = uniforms((seed, 1, step, view), (num, crop_columns + 14))
    crop_uniforms, u = u[:, :crop_columns], u[:, crop_columns:]
    strength = np.array([augment.brightness, augment.contrast, augment.saturation, augment.hue])
    center = np.array([1.0, 1.0, 1.0, 0.0])
    low = np.where(center > 0, np.maximum(center - strength, 0), -strength)
    factors = low + (center + strength - low) * u[:, :4]
    jittered = u[:, 8:9] < augment.jitter_probability
    sigma_low, sigma_high = augment.blur_sigma
    return Draw(
        crop=crop_uniforms,
        flip=u[:, 9] < augment.flip_probability,
        factors=np.where(jittered, factors, center),
        order=np.argsort(u[:, 4:8], axis=1, kind="stable"),
        gray=u[:, 10] < augment.gray_probability,
        blur=u[:, 11] < (augment.blur_probability[view] if view < 2 else augment.small_blur_probability),
        sigma=sigma_low + (sigma_high - sigma_low) * u[:, 12],
        solarize=u[:, 13] < (augment.solarize_probability[view] if view < 2 else 0.0),
    )


def crop(images_NCHW: Tensor, drawn: Draw, augment: Augment, size: int, view: int = 0) -> Tensor:
    """Return the drawn crops of float images of one size, resized to (N, C, size, size) and mirrored where drawn."""
    height, width = images_NCHW.shape[2:]
    device = images_NCHW.device
    boxes = crop_boxes(drawn.crop, height, width, augment.scale(view), augment.crop_ratio)
    box_N5 = torch.from_numpy(np.column_stack([boxes, drawn.flip])).to(device, non_blocking=True)
    top_N, left_N, height_N, width_N, flip_N = box_N5.unbind(1)
    rows_NSH = crop_matrices(top_N, height_N, height, size, torch.zeros_like(flip_N, dtype=torch.bool))
    columns_NSW = crop_matrices(left_N, width_N, width, size, flip_N.bool())
    return apply_along_axes(images_NCHW, rows_NSH, columns_NSW)


def recolor(views_NCSS: Tensor, drawn: Draw, augment: Augment) -> Tensor:
    """Return the crops with jitter, gray, blur and solarize as drawn; values between 0 and 1 in and out."""
    device = views_NCSS.device
    views_NCSS = jitter(views_NCSS, drawn.factors, drawn.order)
    rows = rows_on_device(drawn.gray, device)
    if views_NCSS.shape[1] == 3 and len(rows):
        views_NCSS[rows] = to_gray(views_NCSS[rows]).expand(-1, 3, -1, -1)
    if drawn.blur.all():
        views_NCSS = blur(views_NCSS, on_device(drawn.sigma, device))
    elif drawn.blur.any():
        rows = rows_on_device(drawn.blur, device)
        views_NCSS[rows] = blur(views_NCSS[rows], on_device(drawn.sigma[drawn.blur], device))
    rows = rows_on_device(drawn.solarize, device)
    if len(rows):
        some_NCSS = views_NCSS[rows]
        views_NCSS[rows] = torch.where(some_NCSS >= augment.solarize_threshold, 1 - some_NCSS, some_NCSS)
    return views_NCSS


def blur_kernel_size(size: int) -> int:
    """Return the width of the blur's kernel: 23 pixels at 224, in proportion at other sizes, odd and at least 3."""
    return max(3, 2 * round((size * 23 / 224 - 1) / 2) + 1)


def blur(images_NCSS: Tensor, sigma_N: Tensor) -> Tensor:
    """Return the square images blurred, each by a Gaussian of its own width in pixels; borders are reflected."""
    size = images_NCSS.shape[-1]
    num_taps = blur_kernel_size(size)
    reach_K = torch.arange(num_taps, device=sigma_N.device) - num_taps // 2
    weight_NK = torch.softmax(-0.5 * (reach_K / sigma_N[:, None]) ** 2, 1)
    matrix_NSS = (weight_NK @ _taps(size, num_taps, images_NCSS.device)).view(-1, size, size)
    return apply_along_axes(images_NCSS, matrix_NSS, matrix_NSS)


@lru_cache(maxsize=4)
def _taps(size: int, num_taps: int, device: torch.device) -> Tensor:
    """Return which input pixel each tap reads for each output pixel, as zeros and ones, shape (K, S * S)."""
    position_SK = torch.arange(size)[:, None] + torch.arange(num_taps) - num_taps // 2
    reflected_SK = position_SK.abs()
    reflected_SK = torch.where(reflected_SK >= size, 2 * (size - 1) - reflected_SK, reflected_SK)
    return torch.nn.functional.one_hot(reflected_SK.T, size).float().reshape(num_taps, -1).to(device)
