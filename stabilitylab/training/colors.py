"""The color operations of torchvision for a whole batch, each image with its own factors and its own order.

Shape suffixes: N images, C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["jitter", "normalized", "on_device", "rows_on_device", "shift_hue", "to_gray"]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Return numbers from the host as float32, without waiting for the device."""
    return torch.from_numpy(values.astype(np.float32)).to(device, non_blocking=True)


def rows_on_device(chosen_N: np.ndarray, device: torch.device) -> Tensor:
    """Return the rows that were chosen; how many they are is known on the host, so nothing waits for the device."""
    return torch.from_numpy(np.flatnonzero(chosen_N)).to(device, non_blocking=True)


def jitter(images_NCHW: Tensor, factors: np.ndarray, order: np.ndarray) -> Tensor:
    """Return the images after four color operations, each image with its own factors in its own order.

    Brightness, contrast and saturation are all `f x + (1 - f) anchor`, with the anchors black, the mean gray of the
    image and the gray of the pixel; so one pass does a different one of them to each image, and four passes do all
    in any order. The hue is turned only in the images whose turn it is.

    Args:
        images_NCHW: between 0 and 1; with one channel, saturation and hue change nothing.
        factors: of brightness, contrast and saturation, and the turn of the hue, shape (N, 4).
        order: the operations in the order of their application, shape (N, 4).
    """
    colored = images_NCHW.shape[1] == 3
    device = images_NCHW.device
    factor_N4 = np.take_along_axis(factors, order, 1)
    keep_N4 = np.where((order == HUE) | ((order == SATURATION) & (not colored)), 1.0, factor_N4)
    weights_N43 = np.stack([keep_N4, (1 - keep_N4) * (order == CONTRAST), (1 - keep_N4) * (order == SATURATION)], 2)
    weights_4N3 = on_device(weights_N43, device).transpose(0, 1)
    images_NCHW = images_NCHW.clone()
    for position in range(4):
        keep_N111, mean_N111, pixel_N111 = weights_4N3[position].T.reshape(3, -1, 1, 1, 1)
        gray_N1HW = to_gray(images_NCHW)
        anchor_N1HW = pixel_N111 * gray_N1HW + mean_N111 * gray_N1HW.mean((2, 3), keepdim=True)
        images_NCHW.mul_(keep_N111).add_(anchor_N1HW).clamp_(0, 1)
        turned = (order[:, position] == HUE) & (factor_N4[:, position] != 0)
        if colored and turned.any():
            rows = rows_on_device(turned, device)
            images_NCHW[rows] = shift_hue(images_NCHW[rows], on_device(factor_N4[turned, position], device))
    return images_NCHW


def to_gray(images_NCHW: Tensor) -> Tensor:
    """Return the luma (ITU-R 601) of color images, and gray images as they are, shape (N, 1, H, W)."""
    if images_NCHW.shape[1] == 1:
        return images_NCHW
    red, green, blue = GRAY_WEIGHTS
    gray_N1HW = images_NCHW[:, :1] * red
    return gray_N1HW.add_(images_NCHW[:, 1:2], alpha=green).add_(images_NCHW[:, 2:], alpha=blue)


def shift_hue(images_N3HW: Tensor, turn_N: Tensor) -> Tensor:
    """Return the images with their hue turned by a share of the color circle; value and saturation stay.

    With hue h in sixths of the circle, value v and chroma c, a channel is v - c clamp(min(k, 4 - k), 0, 1) where
    k = (n + h) mod 6 and n is 5, 3, 1 for red, green, blue.
    """
    red_NHW, green_NHW, blue_NHW = images_N3HW.unbind(1)
    value_NHW = images_N3HW.amax(1)
    chroma_NHW = value_NHW - images_N3HW.amin(1)
    scale_NHW = 1 / torch.where(chroma_NHW > 0, chroma_NHW, 1)
    hue_NHW = torch.where(
        value_NHW == red_NHW,
        (green_NHW - blue_NHW) * scale_NHW,
        torch.where(
            value_NHW == green_NHW,
            (blue_NHW - red_NHW).mul_(scale_NHW).add_(2),
            (red_NHW - green_NHW).mul_(scale_NHW).add_(4),
        ),
    )
    hue_NHW += 6 * turn_N[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        k_NHW = torch.remainder(hue_NHW + offset, 6)
        share_NHW = torch.minimum(k_NHW, 4 - k_NHW).clamp_(0, 1)
        channels.append(value_NHW - share_NHW.mul_(chroma_NHW))
    return torch.stack(channels, 1)


def normalized(images_NCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel, in place."""
    for channel, (center, scale) in enumerate(zip(mean, std, strict=True)):
        images_NCHW[:, channel].sub_(center).div_(scale)
    return images_NCHW
