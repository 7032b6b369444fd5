"""The instrumented training against a plain one of the same recipe, side by side in one run.

Plain: torchvision's transforms image by image in two worker processes, each encoder twice, once for each view, the
momentum average parameter by parameter, torch's default AdamW, nothing recorded. Ours: what ``stabilitylab train``
does, with every cheap probe on. Blocks of steps alternate, so that a noisy machine disturbs both alike.

    python tests/benchmarks/training_speed.py [--steps 40]
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torchvision.transforms import v2

from stabilitylab import Recorder, plugins
from stabilitylab.training.batches import batches
from stabilitylab.training.config import Config, resolve
from stabilitylab.training.data import open_dataset
from stabilitylab.training.distributed import process_group
from stabilitylab.training.loop import Setup, prepare

Views = tuple[Tensor, Tensor]


class Plain(nn.Module):
    """MoCo v3 as one would write it down."""

    def __init__(self, method: Any) -> None:
        super().__init__()
        parts = copy.deepcopy((method.backbone, method.projector, method.predictor))
        self.backbone, self.projector, self.predictor = parts
        self.momentum = copy.deepcopy(nn.ModuleList([self.backbone, self.projector])).requires_grad_(False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        q1, q2 = (self.predictor(self.projector(self.backbone(view))) for view in (first, second))
        with torch.no_grad():
            for slow, fast in zip(
                self.momentum.parameters(), [*self.backbone.parameters(), *self.projector.parameters()], strict=True
            ):
                slow.data = slow.data * 0.99 + fast.data * 0.01
            k1, k2 = (self.momentum[1](self.momentum[0](view)) for view in (first, second))
        return self.contrast(q1, k2) + self.contrast(q2, k1)

    @staticmethod
    def contrast(q: Tensor, k: Tensor) -> Tensor:
        logits = normalize(q, dim=1) @ normalize(k, dim=1).T / 0.2
        return cross_entropy(logits, torch.arange(len(q))) * 0.4


def plain_step(setup: Setup) -> Callable[[Views], None]:
    model = Plain(setup.method)
    trainable = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3, weight_decay=0.1)

    def step(views: Views) -> None:
        loss = model(*views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def our_step(setup: Setup, recorder: Recorder | None) -> Callable[[Views], None]:
    method, optimizer = setup.method, setup.optimizer
    for group in optimizer.param_groups:
        group["lr"] = 1e-3

    def step(views: Views) -> None:
        output = method(views, 0.0)
        optimizer.zero_grad()
        output.loss.backward()
        if recorder:
            recorder.step(output.loss, outputs=output.outputs, scalars=output.scalars, images=len(views[0]))
        output.loss.item()
        optimizer.step()

    return step


def configuration(preset: str, **settings: Any) -> Config:
    return resolve(preset, {name.replace("__", "."): value for name, value in settings.items()})


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def steps_alone(name: str, config: Config, size: int, channels: int, blocks: int, folder: Path) -> None:
    """Compare a step without its data: plain, ours with the cheap probes, and ours with none."""
    with process_group("cpu") as ranks:
        setups = [prepare(config, open_dataset(config.data), ranks) for _ in range(3)]
    heavy = [probe for probe in plugins.names("probes") if plugins.load("probes", probe).Parameters().every > 1]
    recorder = Recorder(folder / name, setups[0].method, setups[0].optimizer, probes=dict.fromkeys(heavy, False))
    steps = {
        "plain": plain_step(setups[2]),
        "ours, cheap probes": our_step(setups[0], recorder),
        "ours, no probes": our_step(setups[1], None),
    }
    batch = config.data.batch_size
    views = (torch.randn(batch, channels, size, size), torch.randn(batch, channels, size, size))
    times: dict[str, list[float]] = {which: [] for which in steps}
    for block in range(blocks + 1):
        for which, step in steps.items():
            seconds = timed(lambda step=step: step(views))
            if block:  # the first one warms up
                times[which].append(seconds)
    recorder.close()
    print(f"\nstep alone, {name}, batch {batch}, {blocks} interleaved steps of each")
    report(times)


def report(times: dict[str, list[float]]) -> None:
    plain = np.array(times["plain"])
    rng = np.random.default_rng(0)
    for which, seconds in times.items():
        values = np.array(seconds)
        rows = rng.integers(len(values), size=(2000, len(values)))
        ratios = np.median(values[rows], axis=1) / np.median(plain[rows], axis=1)
        low, high = np.quantile(ratios, [0.025, 0.975])
        ratio = np.median(values) / np.median(plain)
        print(f"  {which:<20} {1e3 * np.median(values):8.1f} ms   {ratio:.3f} of plain  [{low:.3f}, {high:.3f}]")


class PerImage(torch.utils.data.Dataset):
    """The digits with torchvision's transforms, two views of one image at a time."""

    def __init__(self, setup: Setup) -> None:
        pixels = setup.data.train.pixels
        assert pixels is not None
        self.images = [v2.functional.to_pil_image(image) for image in pixels]
        augment, size = setup.config.augment, setup.data.image_size

        def view(blur: float, solarize: float) -> v2.Compose:
            jitter = v2.ColorJitter(augment.brightness, augment.contrast, augment.saturation, augment.hue)
            return v2.Compose(
                [
                    v2.RandomResizedCrop(size, scale=augment.crop_scale),
                    v2.RandomApply([jitter], augment.jitter_probability),
                    v2.RandomApply([v2.GaussianBlur(3, augment.blur_sigma)], blur),
                    v2.RandomSolarize(128, solarize),
                    v2.ToImage(),
                    v2.ToDtype(torch.float32, scale=True),
                    v2.Normalize(setup.data.mean, setup.data.std),
                ]
            )

        pairs = zip(augment.blur_probability, augment.solarize_probability, strict=True)
        self.views = [view(*pair) for pair in pairs]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Views:
        return self.views[0](self.images[index]), self.views[1](self.images[index])


def end_to_end(config: Config, blocks: int, folder: Path) -> None:
    """Compare images per second with the data: each side keeps its own stream."""
    with process_group("cpu") as ranks:
        ours, other = (prepare(config, open_dataset(config.data), ranks) for _ in range(2))
    heavy = [probe for probe in plugins.names("probes") if plugins.load("probes", probe).Parameters().every > 1]
    recorder = Recorder(folder / "whole", ours.method, ours.optimizer, probes=dict.fromkeys(heavy, False))
    step, plain = our_step(ours, recorder), plain_step(other)
    loader = torch.utils.data.DataLoader(
        PerImage(other), config.data.batch_size, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True
    )
    stream = batches(ours.data, config.augment, seed=0, steps=10**9)

    def forever() -> Iterator[Views]:
        while True:
            yield from loader

    plain_stream = forever()
    per_block = len(loader)
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for block in range(blocks + 1):
        seconds = timed(lambda: [plain(next(plain_stream)) for _ in range(per_block)])
        own = timed(lambda: [step(next(stream).views) for _ in range(per_block)])
        if block:
            times["plain"].append(seconds / per_block)
            times["ours"].append(own / per_block)
    recorder.close()
    print(f"\nend to end on digits, data included, {blocks} interleaved epochs of {per_block} steps of each")
    report(times)
    rates = {which: config.data.batch_size / float(np.median(seconds)) for which, seconds in times.items()}
    print(f"  images/s: plain {rates['plain']:.0f}, ours {rates['ours']:.0f}: {rates['ours'] / rates['plain']:.2f}x")


def heavy_probes(config: Config, folder: Path) -> None:
    """Print what one measurement of each heavy probe costs, in steps of training."""
    with process_group("cpu") as ranks:
        setup = prepare(config, open_dataset(config.data), ranks)
    step = our_step(setup, None)
    size, batch = setup.data.image_size, config.data.batch_size
    views = (torch.randn(batch, setup.data.channels, size, size), torch.randn(batch, setup.data.channels, size, size))
    step(views)
    alone = float(np.median([timed(lambda: step(views)) for _ in range(10)]))
    print("\none measurement of the heavy probes on digits")
    for name in plugins.names("probes"):
        kind = plugins.load("probes", name)
        if kind.Parameters().every == 1:
            continue
        others = {each: False for each in plugins.names("probes") if each != name}
        recorder = Recorder(folder / name, setup.method, held_out=setup.held_out, probes=others | {name: {"every": 1}})
        seconds = float(np.median([timed(lambda r=recorder: r.step()) for _ in range(10)]))
        recorder.close()
        every = kind.Parameters().every
        share = 100 * seconds / alone / every
        print(f"  {name:<10} {1e3 * seconds:7.1f} ms, every {every} steps: {share:.1f} % of the training")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="interleaved steps on digits; a quarter on the ViT-S/16")
    steps = parser.parse_args().steps
    digits = configuration("digits")
    vit_s = configuration(
        "moco-v3-vit-s", data__batch_size=8, data__image_size=224, data__bank_images=20, data__held_out_images=20,
        probes__knn__k=5, schedule__warmup_steps=0, train__steps=10,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps_alone("digits", digits, 8, 1, steps, folder)
        steps_alone("ViT-S-16 at 224", vit_s, 224, 3, max(steps // 4, 3), folder)
        end_to_end(digits, max(steps // 6, 3), folder)
        heavy_probes(digits, folder)


if __name__ == "__main__":
    main()
