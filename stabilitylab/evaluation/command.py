"""What ``stabilitylab evaluate`` does: find weights and images, judge, tell, and keep the result in the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from stabilitylab.disk.atomic import write_json
from stabilitylab.errors import InputError
from stabilitylab.evaluation.features import features_of, method_of
from stabilitylab.evaluation.finetune import finetune
from stabilitylab.evaluation.judge import Judging, judge, over_seeds
from stabilitylab.findings import to_json
from stabilitylab.parameters import validated
from stabilitylab.run import Run
from stabilitylab.settings import flatten, parse_settings
from stabilitylab.training.config import Config, resolve
from stabilitylab.training.data import open_dataset
from stabilitylab.training.distributed import process_group
from stabilitylab.training.weights import find

__all__ = ["evaluate"]

USED = ("data", "model", "method")
"""Sections of the configuration that say what is judged, and on what."""


def evaluate(path: Path, data: Path | None, settings: Sequence[str], as_json: bool) -> None:
    """Judge weights and print a table or JSON; a run keeps the result in ``evaluations``.

    Args:
        path: a run, a checkpoint folder, or a published checkpoint.
        data: other images than those of the run.
        settings: ``key=value``: fields of `Judging`, or of the configuration (`USED`).
        as_json: whether to print JSON.

    Raises:
        InputError: if there are no weights, no images, or a setting is not known.
    """
    trained = find(path)
    words = parse_settings(settings)
    own = {name: words.pop(name) for name in list(words) if "." not in name}  # the others are of the configuration
    judging = validated(Judging, own, "evaluate")
    used = (*USED, "augment") if judging.finetune else USED
    idle = [name for name in words if name.partition(".")[0] not in used and name != "train.device"]
    if idle:
        raise InputError(
            f"{idle[0]} has no effect on an evaluation, which takes {', '.join(Judging.model_fields)}, and of the "
            f"configuration the settings of {', '.join(used)}, and train.device"
        )
    config = _config(trained.run, data, words)
    say: Callable[[str], None] = (lambda _: None) if as_json else (lambda text: click.echo(text, err=True))
    with process_group(config.train.device) as ranks:
        if ranks.world > 1:
            raise InputError("'stabilitylab evaluate' is for one process; start it without torchrun")
        dataset = open_dataset(config.data.model_copy(update={"batch_size": 2}))
        method = method_of(trained, config, dataset, ranks.device)
        train, held_out = (features_of(method, dataset, which, ranks.device, say) for which in ("bank", "held_out"))
        with torch.random.fork_rng(devices=[]):
            rows = judge(train, held_out, judging, say)
            if judging.finetune:
                rows.append(over_seeds("fine-tuning", *finetune(path, config, judging, ranks, say)))
    now = datetime.now(UTC)
    result: dict[str, Any] = {
        "weights": str(path), "step": trained.step, "images": dataset.name, "training_images": len(train.labels),
        "time": now.isoformat(timespec="seconds"), "parameters": judging.model_dump(mode="json"), "measures": rows,
    }  # fmt: skip
    if trained.run is not None:
        folder = trained.run / "evaluations"
        folder.mkdir(exist_ok=True)
        write_json(folder / f"{trained.step or 0:08d}-{now:%Y%m%d-%H%M%S}.json", result)
    if as_json:
        click.echo(json.dumps(to_json(result), indent=1, allow_nan=False))
    else:
        _tell(result)


def _config(run: Path | None, data: Path | None, words: dict[str, Any]) -> Config:
    if data is not None:
        words = {"data.path": str(data), "data.format": "auto", **words}
    if run is None:
        if data is None and "data.path" not in words:
            raise InputError("which images a published checkpoint is judged on must be said: --data FOLDER")
        return resolve("moco-v3-vit-s", words)
    config = Run(run).config
    if "preset" not in config:
        raise InputError(f"{run} was not made by 'stabilitylab train': its run.json holds no configuration")
    settings = flatten({key: value for key, value in config.items() if key != "preset"})
    kept = {name: value for name, value in settings.items() if value is not None}
    return resolve(str(config["preset"]), kept, words)


def _tell(result: dict[str, Any]) -> None:
    console = Console(highlight=False)
    table = Table("measure", "value", "95 % interval", "of", box=None, pad_edge=False)
    for row in result["measures"]:
        if "low" in row:
            chosen = ", ".join(f"{name} {row[name]}" for name in ("k", "temperature", "rate") if name in row)
            spread = f", sd over {row['seeds']} seeds {row['sd_seeds']:.2%}" if row.get("sd_seeds") is not None else ""
            interval = f"{row['low']:.1%} to {row['high']:.1%}"
            about = f"{row['images']} images{': ' if chosen else ''}{chosen}{spread}"
            table.add_row(row["measure"], f"{row['value']:.1%}", interval, about)
        else:
            about = f"{row['dimensions']} dimensions, {row['images']} images"
            table.add_row(row["measure"], f"{row['value']:.1f}", "", about)
    console.print(f"{result['weights']}, step {result['step']}, on {result['images']}", soft_wrap=True)
    console.print(table)
