"""Milliseconds to make one view: all images at once, against torchvision's pipeline one image after the other.

Run as ``python tests/benchmarks/augment_speed.py``. Both make the first published view (crop, jitter, gray, blur,
flip, normalize) of the same images on the CPU, taking turns. The first round does not count; the best of the others
does. Other work on the machine slows torchvision's many small calls more than ours, so look at a quiet one.
"""

import time
from collections.abc import Callable

import torch
from torchvision.transforms import v2

from stabilitylab.training.augment import Augment, blur_kernel_size, crop, draw, recolor
from stabilitylab.training.colors import normalized

ROUNDS = 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CASES = ((256, 1, 8), (256, 3, 32), (64, 3, 224))


def ours(pixels: torch.Tensor, step: int) -> torch.Tensor:
    augment, (num, channels, size, _) = Augment(), pixels.shape
    drawn = draw(augment, 0, step, 0, num)
    cropped = crop(pixels.float().div_(255), drawn, augment, size)
    return normalized(recolor(cropped, drawn, augment), MEAN[:channels], STD[:channels])


def theirs(channels: int, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    color = [v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8), v2.RandomGrayscale(0.2)]
    return v2.Compose(
        [v2.RandomResizedCrop(size, scale=(0.08, 1), antialias=True)]
        + (color if channels == 3 else [v2.RandomApply([v2.ColorJitter(0.4, 0.4)], p=0.8)])
        + [v2.GaussianBlur(blur_kernel_size(size), (0.1, 2.0)), v2.RandomHorizontalFlip()]
        + [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN[:channels], STD[:channels])]
    )


def main() -> None:
    print(f"{'batch':>6} {'size':>5} {'ours':>10} {'torchvision':>12}  torchvision / ours   (ms per view)")
    for num, channels, size in CASES:
        pixels = torch.randint(0, 256, (num, channels, size, size), dtype=torch.uint8)
        pipeline = theirs(channels, size)
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for step in range(ROUNDS + 1):
            start = time.perf_counter()
            ours(pixels, step)
            middle = time.perf_counter()
            torch.stack([pipeline(image) for image in pixels])
            times["ours"].append(middle - start)
            times["theirs"].append(time.perf_counter() - middle)
        mine, other = (1e3 * min(seconds) / num for seconds in (taken[1:] for taken in times.values()))
        print(f"{num:>6} {size:>5} {mine:>10.4f} {other:>12.4f} {other / mine:>11.1f} x")


if __name__ == "__main__":
    main()
