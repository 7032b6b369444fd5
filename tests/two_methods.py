"""Every method in two processes: ``torchrun --nproc-per-node 2 tests/two_methods.py FOLDER``."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from test_methods import IMAGES, NAMES, Convolutional, method, vit
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_a_group

from stabilitylab import plugins

SAMPLES, STEPS = 12, 2
CASES = [(name, False) for name in NAMES]
CASES += [(name, True) for name in NAMES if getattr(plugins.load("methods", name), "takes_small_crops", False)]
"""Methods, and whether with small crops beside the two views."""
KEPT = ("queue", "bank", "ages", "center", "running", "start", "keys")
"""Words in the names of buffers that must come out alike."""


def batch(step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    first = torch.randn(SAMPLES, 1, 8, 8, generator=generator)
    second = first + 0.3 * torch.randn(first.shape, generator=generator)
    return first, second, torch.randperm(IMAGES, generator=generator)[:SAMPLES], torch.arange(SAMPLES) % 4


def made_for(name: str, crops: bool) -> Any:
    return method(name, partial(vit, *[4] * crops))


def trained(made: Any, part: slice, crops: bool, model: Any = None) -> dict[str, Tensor]:
    """Return losses, gradients and buffers of some steps on a part of each batch."""
    found = {}
    optimizer = torch.optim.SGD([each for each in made.parameters() if each.requires_grad], 0.01)
    for step in range(STEPS):
        first, second, indices, labels = (each[part] for each in batch(step))
        torch.manual_seed(step)
        small = (first[:, :, 2:6, 2:6], second[:, :, :4, 4:]) if crops else ()
        output = (model or made)((first, second, *small), 0.5, indices, labels)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        found[f"loss {step}"] = output.loss.detach()
        gradients = {name: each.grad for name, each in made.named_parameters() if each.grad is not None}
        found |= {f"{name} {step}": gradient.clone() for name, gradient in gradients.items()}
    return found | {name: each.clone() for name, each in made.named_buffers() if any(word in name for word in KEPT)}


def own_half(rank: int) -> slice:
    return slice(rank * SAMPLES // 2, (rank + 1) * SAMPLES // 2)


def main(folder: Path) -> None:
    rank = torch.distributed.get_rank()
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    for name, crops in CASES:
        made = made_for(name, crops)
        parallel = DistributedDataParallel(made, broadcast_buffers=False)
        found[f"{name} {crops}"] = trained(made, own_half(rank), crops, parallel)
    for shuffles in (True, False):
        made = method("moco_v2", Convolutional)
        made._shuffles = shuffles
        torch.manual_seed(11 + rank)
        found[f"shuffle_bn {shuffles}"] = made._keys_of(batch(0)[1][own_half(rank)])
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    in_a_group(main)
