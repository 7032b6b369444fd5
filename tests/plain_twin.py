"""A plain PyTorch loop recorded by the plain Recorder: what every adapter has to equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from stabilitylab import Recorder, Run, plugins

SAMPLES, BATCH, EPOCHS = 22, 4, 3
LOADED = 6
"""Batches of an epoch: the last one is smaller, and four of them are no whole number of accumulated steps."""
PROBES = {each: False for each in plugins.names("probes") if each not in ("gradients", "training", "updates")}
"""The probes of the loop itself; the others are tested elsewhere."""


class Model(nn.Module):
    """A classifier that also takes labels and returns its loss, as the models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 3)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Any:
        scores = self.second(self.first(images).tanh())
        if labels is None:
            return scores
        return {"loss": nn.functional.cross_entropy(scores.float(), labels), "logits": scores}


class Samples(Dataset):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        images = torch.randn(6, generator=generator)
        return {"images": images, "labels": (images[0] > 0).long() + (images[1] > 0.5).long()}


def loader(batch: int = BATCH) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(Samples(), batch_size=batch)


def optimizer_of(model: nn.Module, lr: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr)


def schedule_of(optimizer: torch.optim.Optimizer, decay: float = 0.9) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: decay**step)


def groups(accumulate: int, batch: int) -> Iterator[list[dict[str, Tensor]]]:
    """The micro-batches of each step; an epoch ends with what is left."""
    for _ in range(EPOCHS):
        batches = iter(loader(batch))
        while group := list(islice(batches, accumulate)):
            yield group


def plain(
    path: Path,
    *,
    batch: int = BATCH,
    lr: float = 1e-2,
    decay: float = 0.9,
    accumulate: int = 1,
    max_norm: float | None = None,
    divisor: Callable[[list[Any]], float] = len,
    precision: Callable[[], AbstractContextManager] = nullcontext,
    scaler: torch.amp.GradScaler | None = None,
    skipping: bool = False,
) -> Run:
    """Train and record.

    Args:
        path: of the run.
        batch: samples of a micro-batch.
        lr: rate of the first step.
        decay: factor of the rate from one step to the next.
        accumulate: micro-batches a step.
        max_norm: the gradients are clipped to.
        divisor: of the loss of each micro-batch, given the micro-batches of its step.
        precision: the context of the forward pass.
        scaler: of an fp16 loop.
        skipping: whether the schedule waits where the scaler skips a step.
    """
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    model = Model()
    optimizer = optimizer_of(model, lr)
    schedule = schedule_of(optimizer, decay)
    with Recorder(path, model, optimizer, scaler=scaler, probes=PROBES) as recorder:
        for group in groups(accumulate, batch):
            optimizer.zero_grad()
            total = torch.zeros(())
            for samples in group:
                with precision():
                    loss = model(**samples)["loss"] / divisor(group)
                scaler.scale(loss).backward()
                total = total + loss.detach()
            scaler.unscale_(optimizer)
            recorder.step(total, max_norm=max_norm)
            if max_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            scaler.step(optimizer)
            before = scaler.get_scale()
            scaler.update()
            if not (skipping and scaler.get_scale() < before):
                schedule.step()
    return Run(path)


def assert_equal(run: Run, expected: Run, ignore: str = "model.", rtol: float = 0.0) -> None:
    """Assert that two runs hold the same numbers, and that the self-checks of both passed."""
    assert run.series == expected.series
    assert {"gradients.norm", "training.loss", "training.lr"} <= set(run.series)
    for series in run.series:
        frame, other = run[series], expected[series]
        assert [each.removeprefix(ignore) for each in frame.columns] == list(other.columns)
        assert list(frame.index) == list(other.index)
        if not run.about(series).get("wall_clock"):
            np.testing.assert_allclose(frame.to_numpy(), other.to_numpy(), rtol=rtol, atol=0, err_msg=series)
    for each in (run, expected):
        assert each.header["self_check"]["mistake"] == "passed", each.header["self_check"]
        assert each.status == "completed"
