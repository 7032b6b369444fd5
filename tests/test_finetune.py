"""Truth: images that are dark or bright, an accuracy counted by hand, and what the training itself records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from test_evaluation import folder
from test_training import go

from stabilitylab.cli import main
from stabilitylab.evaluation import finetune as module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuned") / "r"
    go(path, train__steps=2, schedule__warmup_steps=1)
    return path


def evaluate(*words: str) -> Any:
    quick = [f"{name}=false" for name in ("knn", "linear", "logistic", "ranks")]
    given = [word for setting in (*quick, "finetune=true", "data.workers=0") for word in ("--set", setting)]
    return CliRunner().invoke(main, ["evaluate", *given, *words])


def test_a_fine_tuned_backbone_tells_dark_from_bright(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Any] = []
    train = module.train

    def watched(setup: Any, *rest: Any) -> Any:
        trained.append(setup)
        return train(setup, *rest)

    monkeypatch.setattr(module, "train", watched)
    settings = (
        "finetune_epochs=25", "finetune_rates=[0.3, 0.1]", "seeds=2", "validation=0.4", "finetune_layer_decay=0.8",
        "augment.jitter_probability=0",
    )  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    done = evaluate(str(run), "--data", str(folder(tmp_path / "f")), "--json", *words)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    (row,) = result["measures"]
    assert row["measure"] == "fine-tuning"
    assert row["mean_seeds"] == 1.0 == row["value"]
    assert (row["rate"], row["seeds"], set(row["grid"])) == (0.3, 2, {"0.1", "0.3"})
    kept = [json.loads(file.read_text()) for file in (run / "evaluations").iterdir()]
    assert result in kept
    # two trials on a part of the training images, one of the seeds on all of them, and never on the held-out ones
    sizes = [(len(each.data.train), len(each.data.held_out)) for each in trained]
    assert sizes == [(11, 8), (11, 8), (19, 5), (19, 5)]
    held_out = set(trained[-1].data.held_out.files)
    assert not any(held_out & {*each.data.train.files} for each in trained)
    for each in trained:
        config = each.config
        assert (config.method.name, config.optimizer.layer_decay, config.model.drop_path) == ("supervised", 0.8, 0.1)
        assert config.optimizer.decay_all is False
    assert [each.config.train.seed for each in trained] == [0, 0, 0, 1]
    one, other = (each.method.projector.weight for each in trained[2:])
    assert not torch.equal(one, other)


def test_no_part_stays_frozen_and_nothing_is_said_of_small_crops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = {"augment__small_crops": 1, "augment__small_crop_size": 4, "model__patch_projection": "frozen"}
    go(tmp_path / "r", train__steps=2, schedule__warmup_steps=1, method__name="dino", model__patch_size=4, **crops)
    trained: list[Any] = []
    train = module.train
    monkeypatch.setattr(module, "train", lambda setup, *rest: (trained.append(setup), train(setup, *rest))[1])
    done = evaluate(str(tmp_path / "r"), *(w for s in ("finetune_epochs=1", "seeds=1") for w in ("--set", s)))
    assert done.exit_code == 0, done.output
    assert "no effect" not in done.stderr
    assert "fine-tuning: 1 epoch, rate" in done.stderr
    weights = [setup.method.backbone.patch_embed.proj.weight for setup in trained]
    assert len(weights) == 4
    assert all(each.requires_grad for each in weights)


def test_one_rate_is_not_chosen_and_what_fails_is_said(run: Path) -> None:
    quick = ("--set", "finetune_epochs=1", "--set", "seeds=1", "--json")
    done = evaluate(str(run), "--set", "finetune_rates=[0.01]", *quick)
    (row,) = json.loads(done.stdout)["measures"]
    assert (row["rate"], row["grid"], row["sd_seeds"]) == (0.01, {}, None)
    assert row["low"] <= row["value"] <= row["high"]
    done = evaluate(str(run), "--set", "finetune_rates=[1e30]", *quick)
    assert done.exit_code == 1
    assert "fine-tuning failed: the loss is" in done.stderr
    assert "smaller evaluate.finetune_rates may do" in done.stderr
    done = evaluate(str(run), "--set", "finetune_rates=[]", *quick)
    assert "evaluate.finetune_rates was []" in done.stderr


def test_a_rate_that_fails_is_not_chosen(run: Path) -> None:
    quick = ("--set", "finetune_epochs=1", "--set", "seeds=1", "--json")
    done = evaluate(str(run), "--set", "finetune_rates=[1e30, 0.01]", *quick)
    (row,) = json.loads(done.stdout)["measures"]
    assert (row["rate"], row["grid"]["1e+30"]) == (0.01, 0.0)
