"""The examples of ``docs/adapters.md``, and the names that they take for granted."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from plain_twin import BATCH, Model, Samples, optimizer_of, schedule_of
from torch import nn
from transformers import TrainingArguments

PAGE = Path(__file__).parents[1] / "docs/adapters.md"


class Module(LightningModule):
    """The model of the plain loop, its optimizer and its schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)

    def training_step(self, batch: Any, index: int) -> Any:
        samples = batch if isinstance(batch, dict) else dict(zip(("images", "labels"), batch, strict=True))
        return self.model(**samples)

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_of(self.model)
        return [optimizer], [{"scheduler": schedule_of(optimizer), "interval": "step"}]


def examples() -> dict[str, str]:
    """Return the code of the page: title of the section to its block."""
    sections = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    blocks = {title: re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for title, text in sections}
    return {title: block for title, found in blocks.items() for block in found}


def names(rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    """Return what the page calls yours; of several ranks, each has its part of every batch."""
    model, samples = Model(), Samples()
    pairs = [(sample["images"], sample["labels"]) for sample in map(samples.__getitem__, range(len(samples)))]
    loader = torch.utils.data.DataLoader(list(islice(pairs, rank, None, ranks)), batch_size=BATCH)
    return {
        "torch": torch,
        "device": "cpu",
        "model": model,
        "optimizer": optimizer_of(model),
        "criterion": nn.functional.cross_entropy,
        "loader": loader,
        "dataset": samples,
        "module": Module(),
        "arguments": TrainingArguments("out", use_cpu=True, num_train_epochs=1, report_to="none", save_strategy="no"),
    }
