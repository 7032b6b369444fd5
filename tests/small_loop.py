"""A small training loop with everything that a careless probe could disturb."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stabilitylab import HeldOut, Recorder, Run, plugins

SAMPLES, FEATURES, CLASSES = 48, 10, 3


class Model(nn.Module):
    """Everything that a careless probe could disturb: dropout, batch norm, frozen and unused parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 16)
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.3)
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.last = nn.Linear(16, CLASSES)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.drop(self.norm(self.first(x)).relu()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.features(x))


def data(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    images = torch.randn(SAMPLES, FEATURES, generator=generator) + 1.5 * nn.functional.one_hot(labels, FEATURES)
    return images, labels


def held_out(model: Model) -> HeldOut:
    def encode(images: torch.Tensor) -> dict[str, torch.Tensor]:
        features = model.features(images)
        return {"representation": features, "projection": model.last(features)}

    return HeldOut(*data(2), *data(3), encode, chunk=20)


def training(model: Model, optimizer: torch.optim.Optimizer, first: int, stop: int) -> Iterator[dict[str, Any]]:
    images, labels = data()
    for step in range(first, stop):
        torch.manual_seed(step)
        features = model.features(images)
        loss = nn.functional.cross_entropy(model.last(features), labels)
        optimizer.zero_grad()
        loss.backward()
        outputs = {"representation": features, "labels": labels}
        yield {"loss": loss, "outputs": outputs, "images": SAMPLES, "scalars": {"momentum": 0.99}}
        optimizer.step()


def build(seed: int = 0) -> tuple[Model, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Model()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def record(path: Path, steps: int = 50, probes: dict[str, Any] | None = None) -> Run:
    model, optimizer = build()
    with Recorder(path, model, optimizer, probes=probes, held_out=held_out(model)) as recorder:
        for step in training(model, optimizer, 0, steps):
            recorder.step(**step)
    return Run(path)


def only(name: str, **parameters: Any) -> dict[str, Any]:
    return {each: (parameters if each == name else False) for each in plugins.names("probes")}
