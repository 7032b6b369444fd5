"""A small training loop with everything that a careless probe could disturb."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from stabilitylab import HeldOut, Recorder, Run, plugins

SAMPLES, FEATURES, CLASSES = 48, 10, 3


class Model(nn.Module):
    """Everything that a careless probe could disturb: dropout, batch norm, frozen, unused and averaged parameters."""

    diagnostics = ("cosine", "not_told")

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 16)
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.3)
        self.attention = nn.MultiheadAttention(4, num_heads=2, batch_first=True)
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.last = nn.Linear(16, CLASSES)
        self.momentum_last = deepcopy(self.last).requires_grad_(False)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.drop(self.norm(self.first(x)).relu()).reshape(-1, 4, 4)
        return self.frozen((tokens + self.attention(tokens, tokens, tokens)[0]).flatten(1))

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

    def encode_momentum(images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"momentum_projection": model.momentum_last(model.features(images))}

    return HeldOut(*data(2), *data(3), encode, chunk=20, encode_momentum=encode_momentum)


def training(model: Model, optimizer: torch.optim.Optimizer, first: int, stop: int) -> Iterator[dict[str, Any]]:
    images, labels = data()
    for step in range(first, stop):
        torch.manual_seed(step)
        features = model.features(images)
        with torch.no_grad():
            for slow, fast in zip(model.momentum_last.parameters(), model.last.parameters(), strict=True):
                slow.lerp_(fast, 0.01)
        projection, positive = model.last(features), model.momentum_last(features)
        loss = nn.functional.cross_entropy(projection, labels)
        optimizer.zero_grad()
        loss.backward()
        outputs = {"representation": features, "labels": labels, "indices": torch.arange(SAMPLES)}
        outputs |= {"projection": projection, "positive": positive}
        cosine = nn.functional.cosine_similarity(projection, positive).mean()
        outputs |= {"diagnostics.cosine": cosine}
        yield {"loss": loss, "outputs": outputs, "images": SAMPLES, "scalars": {"momentum": 0.99}}
        optimizer.stabilizers.latest = {"coefficient": torch.full((1,), 1 / (1 + step))}
        optimizer.step()


def build(seed: int = 0) -> tuple[Model, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Model()
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-2)
    optimizer.stabilizers = SimpleNamespace(labels={"coefficient": ["total"]}, latest={})
    return model, optimizer


def record(path: Path, steps: int = 50, probes: dict[str, Any] | None = None) -> Run:
    model, optimizer = build()
    with Recorder(path, model, optimizer, probes=probes, held_out=held_out(model)) as recorder:
        for step in training(model, optimizer, 0, steps):
            recorder.step(**step)
    return Run(path)


def only(name: str, **parameters: Any) -> dict[str, Any]:
    return {each: (parameters if each == name else False) for each in plugins.names("probes")}
