"""What two processes record, as torchrun starts them: ``torchrun --nproc-per-node 2 tests/two_processes.py FOLDER``."""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from stabilitylab import InputError, Recorder

STEPS, SAMPLES = 8, 8


def build(width: int = 7) -> nn.Module:
    """Sizes that two ranks cannot halve, a bias of one entry of which a rank holds nothing, and a frozen layer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 6).requires_grad_(False), nn.Linear(6, 1))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(SAMPLES, 5, generator=generator), torch.randn(SAMPLES, 1, generator=generator)


def half(step: int) -> tuple[Tensor, Tensor]:
    rank = torch.distributed.get_rank()
    images, goals = batch(step)
    return images.chunk(2)[rank], goals.chunk(2)[rank]


def loop(
    path: Path,
    model: nn.Module,
    share: Callable[[int], tuple[Tensor, Tensor]],
    records: bool = True,
    no_sync: bool = False,
    teacher: nn.Module | None = None,
) -> None:
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2, foreach=False)
    recorder = Recorder(path, model, optimizer, teacher=teacher, flush_steps=3) if records else None
    for step in range(STEPS):
        images, goals = share(step)
        if no_sync:
            with model.no_sync():
                ((model(images) - goals) ** 2).mean().backward()
        else:
            ((model(images) - goals) ** 2).mean().backward()
        if recorder:
            recorder.step(0.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.distributed.barrier()
    if recorder:
        recorder.close()


def main(folder: Path) -> None:
    rank = torch.distributed.get_rank()
    mesh = init_device_mesh("cpu", (2,))
    warnings.simplefilter("ignore")

    loop(folder / "ddp", DistributedDataParallel(build()), half, teacher=build())
    loop(folder / "no_sync", DistributedDataParallel(build()), half, no_sync=True)
    loop(folder / "first_rank_only", DistributedDataParallel(build()), half, records=rank == 0)

    models = build(), build()
    for model in models:
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
    sharded, teacher = (fully_shard(model, mesh=mesh) for model in models)
    loop(folder / "fsdp", sharded, half, teacher=teacher)

    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    whole, teacher = (parallelize_module(build(8), mesh, plan) for _ in range(2))
    loop(folder / "tensor_parallel", whole, batch, teacher=teacher)

    pieces = build()
    with torch.no_grad():
        pieces[0].weight += rank
    loop(folder / "own_weights", pieces, batch)

    model = fully_shard(build(), mesh=mesh)
    try:
        Recorder(folder / "disagree", model, probes={"gradients": rank == 0 and {}})
    except InputError as error:
        (folder / f"disagree-{rank}.json").write_text(json.dumps(str(error)))


def in_a_group(main: Callable[[Path], None]) -> None:
    """Call the main function of a script that torchrun started, with its folder, in a process group of its own."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.distributed.init_process_group("gloo")
    main(Path(sys.argv[1]))
    # torch aborts at exit now and then, with or without a recorder, while sharded models outlive their process group
    gc.collect()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    in_a_group(main)
