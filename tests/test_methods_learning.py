"""Truth: scikit-learn's nearest neighbors, of raw pixels and of the untrained backbone, on digits that were moved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from moved_digits import accuracy, moved

from stabilitylab import plugins
from stabilitylab.training.config import resolve
from stabilitylab.training.data import open_dataset
from stabilitylab.training.distributed import process_group
from stabilitylab.training.fixed_images import fixed_images
from stabilitylab.training.loop import prepare, train

RECIPE = {
    "data.batch_size": 64,
    "optimizer.name": "muon",  # with AdamW three of the methods are hardly above the raw pixels in so short a training
    "optimizer.lr": 5e-3,
    "data.held_out_images": 359,
    "augment.jitter_probability": 0.0,  # the views are moved, as the digits are with which is judged, and no more
    "augment.blur_probability": [0.0, 0.0],
    "model.depth": 2,
    "train.steps": 300,
    "train.device": "cpu",
    "record.self_check": 0,
    "checkpoint.every": 0,
} | {f"probes.{name}": False for name in plugins.names("probes") if name != "training"}
SHORT = {"moco_v3": {"method.projector_layers": 1, "method.momentum": 0.9}}
"""What the preset does not say of a method, as it is made for this one and for longer trainings."""


class Quiet:
    def step(self, step: int, numbers: object) -> None: ...


@pytest.mark.slow
@pytest.mark.parametrize("name", plugins.names("methods"))
def test_every_method_learns_to_recognize_moved_digits(tmp_path: Path, name: str) -> None:
    config = resolve("digits", {"method.name": name}, RECIPE, SHORT.get(name, {}))
    with process_group("cpu") as ranks:
        setup = prepare(config, open_dataset(config.data), ranks)
        bank, held_out = (fixed_images(setup.data, which, ranks.device) for which in ("bank", "held_out"))
        queries = moved(held_out.images)

        def judge() -> float:
            setup.method.eval()
            with torch.no_grad():
                features = [setup.method.backbone(each) for each in (bank.images, queries)]
            return accuracy(features[0], bank.labels, features[1], held_out.labels)

        untrained = judge()
        outcome = train(setup, tmp_path / "run", Quiet())
        learned = judge()
    assert outcome.status == "completed", outcome.message
    raw = accuracy(bank.images, bank.labels, queries, held_out.labels)
    print(f"{name}: raw pixels {raw:.3f}, untrained {untrained:.3f}, learned {learned:.3f}")
    assert learned > untrained + 0.05
    assert learned > raw + 0.03
