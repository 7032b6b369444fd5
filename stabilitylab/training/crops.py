"""Random resized crops: where they lie, and how a whole batch of them is cut at once.

Cutting a box, resizing it and mirroring it are each linear along one axis, so that all three are one matrix for
the rows and one for the columns of each image; two batched matrix products make the views of a batch. Smaller boxes
are interpolated, larger ones averaged (the triangle filter that torchvision and Pillow call antialiasing).

Shape suffixes: N images, C channels, H and W height and width of the input, S side of the output, L length of an
axis of the input, A attempts.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["ATTEMPTS", "apply_along_axes", "crop_boxes", "crop_matrices"]

ATTEMPTS = 10
"""So often a box that does not fit is drawn again, before the largest central box is taken."""


def crop_boxes(
    uniforms: np.ndarray,
    heights: np.ndarray | int,
    widths: np.ndarray | int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """Return one box per image: a random share of its area in a random aspect ratio, at a random place.

    Args:
        uniforms: in [0, 1), shape (N, 2 * ATTEMPTS + 2): areas, aspect ratios, and the place.
        heights: of the images in pixels, shape (N,) or one for all.
        widths: the same for the widths.
        scale: smallest and largest share of the area.
        ratio: smallest and largest width over height; its logarithm is uniform.

    Returns:
        Top, left, height and width in whole pixels, int64, shape (N, 4).
    """
    num = len(uniforms)
    height_N, width_N = (np.broadcast_to(np.asarray(x, np.int64), num) for x in (heights, widths))
    area_NA = (height_N * width_N)[:, None] * _between(scale, uniforms[:, :ATTEMPTS])
    aspect_NA = np.exp(_between((np.log(ratio[0]), np.log(ratio[1])), uniforms[:, ATTEMPTS : 2 * ATTEMPTS]))
    w_NA = np.rint(np.sqrt(area_NA * aspect_NA)).astype(np.int64)
    h_NA = np.rint(np.sqrt(area_NA / aspect_NA)).astype(np.int64)
    fits_NA = (w_NA > 0) & (w_NA <= width_N[:, None]) & (h_NA > 0) & (h_NA <= height_N[:, None])
    first_N = fits_NA.argmax(1)
    found_N = fits_NA.any(1)
    # The whole image, cut to the nearest allowed aspect ratio.
    h_all_N = np.minimum(height_N, np.rint(width_N / ratio[0])).astype(np.int64)
    w_all_N = np.minimum(width_N, np.rint(height_N * ratio[1])).astype(np.int64)
    rows = np.arange(num)
    h_N = np.where(found_N, h_NA[rows, first_N], h_all_N)
    w_N = np.where(found_N, w_NA[rows, first_N], w_all_N)
    place_N2 = np.where(found_N[:, None], uniforms[:, -2:], 0.5)
    free_N2 = np.stack([height_N - h_N, width_N - w_N], 1)
    drawn_N2 = np.floor(place_N2 * (free_N2 + 1)).astype(np.int64)
    corner_N2 = np.where(found_N[:, None], drawn_N2, free_N2 // 2)
    return np.concatenate([corner_N2, h_N[:, None], w_N[:, None]], 1)


def _between(bounds: tuple[float, float], uniforms: np.ndarray) -> np.ndarray:
    return bounds[0] + (bounds[1] - bounds[0]) * uniforms


def crop_matrices(start_N: Tensor, length_N: Tensor, num_in: int, num_out: int, mirrored_N: Tensor) -> Tensor:
    """Return for each image the weights of the input pixels in each output pixel of its crop, along one axis.

    Args:
        start_N: first pixel of the crop, shape (N,).
        length_N: number of pixels of the crop, shape (N,).
        num_in: L, number of pixels of the input.
        num_out: S, number of pixels of the output.
        mirrored_N: whether the output runs backwards, bool, shape (N,).

    Returns:
        Shape (N, S, L); each row sums to 1 and is zero outside the crop.
    """
    device = start_N.device
    start_N11, length_N11 = (x.to(torch.float32)[:, None, None] for x in (start_N, length_N))
    out_S = torch.arange(num_out, device=device, dtype=torch.float32)
    out_NS1 = torch.where(mirrored_N[:, None], num_out - 1 - out_S, out_S)[:, :, None]
    in_L = torch.arange(num_in, device=device, dtype=torch.float32)
    zoom_N11 = length_N11 / num_out
    distance_NSL = (in_L + 0.5 - start_N11 - zoom_N11 * (out_NS1 + 0.5)).abs_()
    weight_NSL = (1 - distance_NSL.div_(zoom_N11.clamp(min=1))).clamp_(min=0)
    weight_NSL.mul_((in_L >= start_N11) & (in_L < start_N11 + length_N11))
    return weight_NSL.div_(weight_NSL.sum(2, keepdim=True))


def apply_along_axes(images_NCHW: Tensor, rows_NSH: Tensor, columns_NSW: Tensor) -> Tensor:
    """Return the images with one matrix applied along their rows' axis and one along their columns', (N, C, S, S)."""
    num, channels, height, _ = images_NCHW.shape
    # One product per image, with its channels stacked, needs no copy of the matrix for each channel.
    narrowed = torch.bmm(images_NCHW.reshape(num, channels * height, -1), columns_NSW.transpose(1, 2))
    return rows_NSH[:, None] @ narrowed.view(num, channels, height, -1)
