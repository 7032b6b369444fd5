"""Truth: the papers and the architectures, which say what has no patches, queue, momentum encoder or BatchNorm."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from stabilitylab.cli import main
from stabilitylab.training.config import parse_settings, resolve
from stabilitylab.training.data import open_dataset
from stabilitylab.training.distributed import process_group
from stabilitylab.training.loop import prepare

TINY = "model.dim=32 model.depth=1 model.heads=4"
TIMM_VIT = "model=test_vit model.patch_size=4"
REFUSED = {
    # backbones and their parts
    "model=resnet18 model.stem=convolutional": "a stem of vit, .*; other models have their own",
    "model=resnet18 model.patch_projection=frozen": "'model.patch_projection'; it belongs to vit, .*model.frozen",
    "model=resnet18 model.positions=rope": "'model.positions'; it belongs to vit",
    "model=resnet18 model.pooling=token": "'model.pooling'; it belongs to vit",
    "model=resnet18 model.patch_size=4": "resnet18 has no patches",
    "model=resnet18 model.frozen=['patch_embed']": "'patch_embed', which has no parameters; there are conv1, bn1",
    "model=regnety_002 model.stem=small": "for a ResNet; regnety_002 has no such stem: choose model.stem=own",
    "model.stem=small": "a stem of timm's models; those of a ViT are patchify, convolutional",
    "model.stem=convolutional model.patch_projection=frozen": r'no patch projection; .*\["patch_embed.convolutions"\]',
    "model.stem=s4 model.frozen=['patch_embed.stem']": "there are patch_embed.convolutions, patch_embed.proj",
    "model.positions=rope model.stem=s1": "model.stem must be patchify",
    "model.positions=rope model.dim=36 model.heads=6": "rotary positions need a multiple of 4",
    "model.dim=30 model.heads=3": "sincos positions need a multiple of 4",
    "model.stem=s1 model.patch_size=1": "the stem 's1' needs a power of two",
    "model.stem=convolutional data.image_size=12 model.patch_size=6": "the stem 'convolutional' needs a power of two",
    "model.stem=s2 data.image_size=64 model.patch_size=32": "made for patches of at most 16",
    "model.patch_size=3": "does not divide data.image_size, 8",
    "model.heads=5": "does not divide model.dim",
    "model=test_vit": "of test_vit is 16, which does not divide data.image_size, 8",
    f"{TIMM_VIT} data.image_size=10": "of test_vit is 4, which does not divide data.image_size, 10",
    f"{TIMM_VIT} model.positions=rope": "'model.positions'; it belongs to vit",
    "model=levit_128s": "cannot take images of 8 pixels: .*data.image_size",
    "model=vgg11 model.drop_path=0.1": "it may not take model.drop_path",
    "model=resnet19": "did you mean resnet18",
    "model=resnet18.nosuch": r"timm has no resnet18 with the tag 'nosuch' \(with weights: .*a1_in1k",
    "optimizer.weight_decay=inf": "optimizer.weight_decay was inf: Input should be a finite number",
    "method.temperature=inf": "method.temperature was inf",
    "method=directclr model.frozen=['patch_embed','blocks','norm','cls_token']": "leaves nothing to train",
    "model.mlp_ratio=0.01": "leaves no unit of model.dim, 32",
    # methods and their parts
    "method=simclr method.momentum=0.9": "'method.momentum'; it belongs to byol, dino, moco_v1, moco_v2, moco_v3",
    "method=simclr method.queue=1024": "'method.queue'; it belongs to moco_v1, moco_v2, swav",
    "method=dino method.batch_norm=true": "'method.batch_norm'; it belongs to .*byol",
    "method=moco_v2 method.queue=100": "method.queue is 100, shorter than the 256 keys of a step",
    "method=directclr method.d0=100": "method.d0 is 100; the backbone has 32 coordinates",
    "method=moco_v1 method.shuffle_bn=true": "the backbone has no BatchNorm.*resnet18",
    "method=moco_v1 method.shuffle_bn=true model.stem=s4": "has BatchNorm over all processes alone",
    "method=simclr augment.small_crops=2": "simclr uses two views alone; small crops are for dino and swav",
    "method=swav augment.small_crops=2 augment.small_crop_size=6": "does not divide augment.small_crop_size, 6",
    f"method=swav augment.small_crops=2 augment.small_crop_size=6 {TIMM_VIT}": "augment.small_crop_size, 6",
    "method=byol method.momentum_schedule=linear": "'cosine' or 'constant'",
    "method=swav method.prototypes=1": "greater than or equal to 2",
    "method=nosuch": "no method is named 'nosuch'",
    # rules that nothing would come of
    "model.patch_projection=frozen optimizer.stem_factor=0.1": "first layer, patch_embed, is frozen from the start",
    "model.patch_projection=frozen optimizer.stem_frozen_after=5": "first layer, patch_embed, is frozen",
    "model=resnet18 model.frozen=['conv1'] stabilize.stem_clip=0.1": "first layer, conv1, is frozen",
    "optimizer=adahessian": "second derivatives",
    "stabilize.threshold=0.5": "a threshold, 0.5, but clip is none: choose one of norm, layer, agc, zclip",
}


def words(case: str) -> list[str]:
    """The settings of a case, with a small ViT where it names no model."""
    given = case.split()
    small = [] if "model=" in case else TINY.split()
    return [*(each for each in small if each.split("=")[0] not in case), *given]


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_in_one_line_before_anything_is_written(tmp_path: Path, case: str) -> None:
    options = [word for setting in words(case) for word in ("--set", setting)]
    result = CliRunner().invoke(main, ["train", "--out", str(tmp_path / "run"), *options])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert result.output.startswith("Error: ")
    assert re.search(REFUSED[case], result.output), result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "case",
    [
        "method=moco_v1 method.shuffle_bn=true model=test_resnet",
        "method=swav augment.small_crops=1 augment.small_crop_size=6 model=test_resnet",
        f"method=dino augment.small_crops=1 augment.small_crop_size=4 {TIMM_VIT}",
        "method=swav augment.small_crops=1 augment.small_crop_size=4 model.stem=convolutional",
        "model.patch_projection=frozen stabilize.clip=norm stabilize.threshold=0.5 optimizer.layer_decay=0.9",
        "model.stem=s3 model.frozen=['patch_embed.proj'] optimizer.stem_factor=0.1 stabilize.stem_clip=0.1",
        "method=directclr method.d0=32 model.positions=rope model.pooling=avg",
    ],
)
def test_what_makes_sense_is_built_and_learns_a_step(case: str) -> None:
    setup: Any = prepared(words(case))
    views = [torch.randn(4, 1, 8, 8) for _ in range(2)]
    views += [torch.randn(4, 1, *(setup.config.augment.side(2, 8),) * 2)] * setup.config.augment.small_crops
    output = setup.method.train()(tuple(views), 0.0, torch.arange(4), torch.arange(4))
    output.loss.backward()
    assert any(each.grad is not None and bool(each.grad.any()) for each in setup.method.parameters())


def prepared(settings: list[str]) -> Any:
    config = resolve("digits", {"train.device": "cpu"}, parse_settings([*settings, "data.batch_size=64"]))
    with process_group("cpu") as ranks:
        return prepare(config, open_dataset(config.data), ranks)


def test_a_name_alone_is_enough() -> None:
    short = {"method": "swav", "model": "vit_1gf", "optimizer": "lamb", "model.stem": "s2", "schedule": "constant"}
    long = {f"{name}.name" if "." not in name else name: value for name, value in short.items()}
    assert resolve("digits", short) == resolve("digits", long)
    assert resolve("digits", short).method.name == "swav"  # type: ignore[attr-defined]


def test_what_the_page_of_the_backbones_says_can_be_said() -> None:
    page = (Path(__file__).parents[1] / "docs" / "backbones.md").read_text(encoding="utf-8")
    lines = re.findall(r"^stabilitylab train (--set .*)$", page, re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        resolve("digits", parse_settings(shlex.split(line.replace("--set ", ""))))


WITHOUT_EFFECT = {
    "stabilize.reset_warmup=20": "stabilize.reset_warmup is 20, which has no effect while stabilize.reset_every is 0",
    "stabilize.clip=norm stabilize.zclip_memory=0.9": "zclip_memory is 0.9, .* while stabilize.clip is norm",
    "method=swav method.queue=0 method.queue_from=0.5": "queue_from is 0.5, .* while method.queue is 0",
    "method=swav augment.small_crop_size=4": "small_crop_size is 4, .* while augment.small_crops is 0",
    "method=moco_v3 method.batch_norm=false method.last_batch_norm=false": "last_batch_norm is False, .* is False",
    "optimizer=sgd optimizer.betas=[0.9,0.95]": r"betas is \(0.9, 0.95\), which sgd does not have",
    "optimizer=adamw optimizer.momentum=0.5": "momentum is 0.5, which adamw does not have",
    "stabilize.clip=zclip stabilize.zclip_memory=0.9": None,
    "optimizer=stableadamw optimizer.betas=[0.9,0.95]": None,
    "optimizer=adafactor optimizer.betas=[0.9,0.95]": None,
    "optimizer=lars optimizer.eps=1e-6": None,
    "optimizer=sgd optimizer.momentum=0.5": None,
    "method=swav augment.small_crops=1 augment.small_crop_size=4 model.patch_size=4": None,
}


@pytest.mark.parametrize("case", WITHOUT_EFFECT)
def test_a_setting_without_effect_is_said_to_have_none(case: str) -> None:
    options = [word for setting in words(case) for word in ("--set", setting)]
    result = CliRunner().invoke(main, ["train", "--dry-run", *options])
    assert result.exit_code == 0, result.output
    expected = WITHOUT_EFFECT[case]
    told = [line for line in result.stderr.splitlines() if "no effect" in line]
    assert len(told) == (expected is not None)
    assert expected is None or re.search(f"^warning: .*{expected}", told[0])
