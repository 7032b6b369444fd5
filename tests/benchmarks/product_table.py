"""Every method on every backbone: each pair is trained on digits, analyzed, and told in ``docs/backbones.md``.

``python tests/benchmarks/product_table.py``; 75 minutes of CPU on one thread with the defaults, of which
ResNet-18 takes 45 and RegNetY-200MF 17. Run it again after an interruption or after a change of settings: a pair
whose run has the present settings is not trained again. ``--methods``, ``--backbones`` and ``--steps`` choose; the
table holds all pairs, with a dash where there is no run with the present settings.

Time is CPU time: the median over the steps, so that steps in which the kNN monitor measures do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from moved_digits import accuracy, moved

from stabilitylab import Run, analyze, plugins
from stabilitylab.measures import FALLS, measure
from stabilitylab.models import kind_of
from stabilitylab.training.config import Config, resolve
from stabilitylab.training.data import Data, open_dataset
from stabilitylab.training.distributed import process_group
from stabilitylab.training.fixed_images import fixed_images
from stabilitylab.training.loop import prepare, train

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
BEGIN, END = "<!-- product table: begin -->", "<!-- product table: end -->"
SIZE = 8
BACKBONES: dict[str, dict[str, Any]] = {
    "ViT": {"model.depth": 2},
    "ViT, C stem": {"model.depth": 2, "model.stem": "convolutional"},
    "ViT, S4 stem": {"model.depth": 2, "model.stem": "s4"},
    "test_vit": {"model.name": "test_vit", "model.patch_size": 4},
    "test_resnet": {"model.name": "test_resnet"},
    "RegNetY-200MF": {"model.name": "regnety_002"},
    "ResNet-18": {"model.name": "resnet18"},
}
PROBES = ("training", "gradients", "knn")
COMMON: dict[str, Any] = {
    "data.batch_size": 32,
    "data.bank_images": 256,
    "data.held_out_images": 180,
    "train.device": "cpu",
    "record.self_check": 0,
    "checkpoint.every": 0,
} | {f"probes.{name}": False for name in plugins.names("probes") if name not in PROBES}


class Clock:
    """A reporter that notes the CPU time after each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def step(self, step: int, numbers: object) -> None:
        self.seconds.append(time.process_time())


def config_of(method: str, backbone: str, steps: int) -> Config:
    return resolve("digits", {"method.name": method}, BACKBONES[backbone], COMMON | {"train.steps": steps})


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """All training digits with their labels, and all held-out ones, moved, with theirs."""
    data = open_dataset(Data(batch_size=2, image_size=SIZE, channels=1))
    bank, held_out = (fixed_images(data, which) for which in ("bank", "held_out"))
    assert bank.labels is not None
    assert held_out.labels is not None
    return bank.images, bank.labels, moved(held_out.images), held_out.labels


@torch.no_grad()
def judge(backbone: torch.nn.Module) -> float:
    """The accuracy of five nearest neighbors on what the backbone makes of the digits."""
    images, labels, queries, right = digits()
    backbone.eval()
    found = [torch.cat([backbone(part) for part in each.split(256)]) for each in (images, queries)]
    return accuracy(found[0], labels, found[1], right)


def run_pair(config: Config, folder: Path) -> dict[str, Any]:
    """Train one pair into a folder and return what a run does not record."""
    clock = Clock()
    with process_group("cpu") as ranks:
        setup = prepare(config, open_dataset(config.data), ranks)
        outcome = train(setup, folder, clock)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    learned = judge(setup.method.get_submodule("backbone")) if outcome.status == "completed" else None
    return {
        "config": config.to_json(),
        "status": outcome.status,
        "steps": outcome.steps,
        "parameters": sum(each.numel() for each in setup.method.parameters() if each.requires_grad),
        "milliseconds": 1000 * float(np.median(np.diff(clock.seconds))),
        "accuracy": learned,
    }


def present(folder: Path, config: Config) -> dict[str, Any] | None:
    """What was noted of a finished run, if its settings are these."""
    note = folder / "pair.json"
    told = json.loads(note.read_text()) if note.is_file() else None
    return told if told and told["config"] == config.to_json() else None


def folder_of(runs: Path, method: str, backbone: str) -> Path:
    return runs / backbone.replace(", ", "-").replace(" ", "-") / method


def pair(runs: Path, method: str, backbone: str, steps: int) -> None:
    """Train one pair, unless there is a run with its settings."""
    folder, config = folder_of(runs, method, backbone), config_of(method, backbone, steps)
    if present(folder, config):
        return
    shutil.rmtree(folder, ignore_errors=True)
    started = time.process_time()
    told = run_pair(config, folder)
    if told["status"] == "interrupted":
        sys.exit(f"interrupted in {backbone}, {method}")
    (folder / "pair.json").write_text(json.dumps(told))
    print(
        f"{backbone:<14} {method:<13} {learned(told):>6}  {told['milliseconds']:.0f} ms a step"
        f"  {time.process_time() - started:.0f} s of CPU",
        flush=True,
    )


def learned(told: dict[str, Any]) -> str:
    return f"{told['accuracy']:.1%}" if told["accuracy"] is not None else f"not finite at {told['steps'] - 1}"


def size_and_time(told: dict[str, Any]) -> str:
    return f"{told['parameters'] / 1e6:.2f} M, {told['milliseconds']:.0f} ms"


def events(told: dict[str, Any]) -> str:
    falls = sum(told[f"{each}s"] for each in FALLS)
    return ", ".join("?" if np.isnan(each) else f"{each:.0f}" for each in (told["spikes"], falls))


def collected(runs: Path, methods: list[str], steps: int) -> dict[tuple[str, str], dict[str, Any]]:
    """What is known of each pair that has a run with the present settings."""
    found = {}
    for method in methods:
        for backbone in BACKBONES:
            folder = folder_of(runs, method, backbone)
            if told := present(folder, config_of(method, backbone, steps)):
                wanted = ("spikes", *(f"{each}s" for each in FALLS))
                found[method, backbone] = told | measure(analyze(Run(folder)), wanted)
    return found


def untrained(steps: int) -> tuple[list[str], list[str]]:
    """The accuracy with each backbone as it starts, and the number of its parameters."""
    accuracies, sizes = [], []
    for backbone in BACKBONES:
        model: Any = config_of("supervised", backbone, steps).model
        torch.manual_seed(0)
        built = kind_of(model.name).build(model, SIZE, 1)
        accuracies.append(f"{judge(built):.1%}")
        sizes.append(f"{sum(each.numel() for each in built.parameters()) / 1e6:.2f} M")
    return accuracies, sizes


def page_part(runs: Path, methods: list[str], steps: int) -> str:
    """The tables of all runs that have the present settings."""
    told = collected(runs, methods, steps)

    def matrix(say: Callable[[dict[str, Any]], str], first: dict[str, list[str]]) -> list[str]:
        rows = first | {
            f"`{method}`": [say(told[method, each]) if (method, each) in told else "-" for each in BACKBONES]
            for method in methods
        }
        lines = [f"| | {' | '.join(BACKBONES)} |", "|---|" + "---:|" * len(BACKBONES)]
        return [*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()), ""]

    images, labels, queries, right = digits()
    accuracies, sizes = untrained(steps)
    common = (
        f"{steps} steps of {COMMON['data.batch_size']} images of {SIZE} pixels, the preset `digits` with what each "
        "method changes in it, seed 0. One run a cell, in which a difference of under seven points can be chance, and "
        f"no setting was chosen for a backbone. {len(told)} of {len(methods) * len(BACKBONES)} pairs have a run with "
        "the present settings; a dash stands for the others."
    )
    recognized = (
        "**Accuracy** of five nearest neighbors (cosine) on all held-out digits, moved by cutting, among all training "
        f"digits; {accuracy(images, labels, queries, right):.1%} from raw pixels."
    )
    costs = (
        "**Trainable parameters** with the heads of the method, in millions, **and CPU time** of a step, in "
        "milliseconds: the median, on one thread, with the gradients recorded at every step. The machine has "
        f"{os.cpu_count()} cores, which had other work: a time can be a third too high."
    )
    found = (
        "**Gradient spikes, falls of the accuracy** (dips, and those that did not recover) that `stabilitylab "
        "analyze` finds; a question mark: not judged. The accuracy is that of "
        f"{COMMON['data.held_out_images']} held-out digits as they are, every ten steps."
    )
    lines = [
        *(fill(common, 120), "", fill(recognized, 120), "", *matrix(learned, {"untrained": accuracies})),
        *(fill(costs, 120), "", *matrix(size_and_time, {"backbone alone": sizes})),
        *(fill(found, 120), "", *matrix(events, {})),
    ]
    return "\n".join(lines)


def write(page: Path, part: str) -> None:
    """Replace what stands between the two marks of the page."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{part}\n{END}{after}", encoding="utf-8")


def main() -> None:
    known = list(plugins.names("methods"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(known), help="names, with commas; none trains nothing")
    parser.add_argument("--backbones", default=";".join(BACKBONES), help="columns of the table, with semicolons")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--runs", type=Path, default=Path("runs/product"), help="where the runs are kept")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--train-only", action="store_true", help="leave the page as it is")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for backbone in filter(None, given.backbones.split(";")):
        for method in filter(None, given.methods.split(",")):
            pair(given.runs, method, backbone, given.steps)
    if not given.train_only:
        write(given.page, page_part(given.runs, known, given.steps))


if __name__ == "__main__":
    main()
