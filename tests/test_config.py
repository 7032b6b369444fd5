"""Truth: the published recipe's numbers, and closed forms of the schedules."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from stabilitylab.errors import InputError
from stabilitylab.training.command import choose
from stabilitylab.training.config import Config, describe, flatten, parse_settings, resolve
from stabilitylab.training.presets import PRESETS, sentence
from stabilitylab.training.schedules import Schedule, factor


def test_the_published_recipe() -> None:
    config = resolve("moco-v3-vit-b")
    method = config.method.model_dump()
    assert (config.model.dim, config.model.depth, config.model.heads, config.model.patch_size) == (768, 12, 12, 16)
    assert (method["hidden"], method["dim"], method["projector_layers"], method["predictor_layers"]) == (
        4096,
        256,
        3,
        2,
    )
    assert (method["temperature"], method["momentum"], method["momentum_schedule"]) == (0.2, 0.99, "cosine")
    assert config.optimizer.rate(config.data.batch_size) == pytest.approx(2.4e-3)
    assert (config.optimizer.name, config.optimizer.weight_decay, config.optimizer.betas) == (
        "adamw",
        0.1,
        (0.9, 0.999),
    )
    assert config.schedule.warmup(312, 312 * 300) == 40 * 312
    assert config.num_steps(312) == 300 * 312
    augment = config.augment
    assert (augment.crop_scale, augment.blur_probability, augment.solarize_probability) == (
        (0.08, 1.0),
        (1.0, 0.1),
        (0.0, 0.2),
    )


def test_the_schedule_in_closed_form() -> None:
    cosine = Schedule(warmup_steps=10)
    assert [factor(cosine, step, 10, 110) for step in (0, 5, 10)] == [0, 0.5, 1]
    for step in (10, 35, 60, 109):
        expected = (1 + math.cos(math.pi * (step - 10) / 100)) / 2
        assert factor(cosine, step, 10, 110) == pytest.approx(expected)
    assert factor(Schedule(name="constant", warmup_steps=10), 109, 10, 110) == 1
    assert factor(Schedule(warmup_steps=0), 0, 0, 10) == 1
    with pytest.raises(
        InputError, match=r"the warm-up takes 20 steps \(schedule\.warmup_steps\), but the training has 10"
    ):
        Schedule(warmup_steps=20).warmup(5, 10)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_resolved_configuration_resolves_to_itself(preset: str) -> None:
    config = resolve(preset)
    settings = {
        name: value for name, value in flatten(config.to_json()).items() if name != "preset" and value is not None
    }
    assert resolve(preset, settings) == config
    assert sentence(preset).endswith((".", ":", "of"))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_setting_has_a_sentence(preset: str) -> None:
    for name, _, meaning in describe(resolve(preset)):
        assert meaning.endswith("."), name


def test_later_settings_win_and_either_or_settings_replace_each_other() -> None:
    config = resolve("digits", {"optimizer.lr": 1.0, "train.steps": 5}, {"optimizer.base_lr": 0.5, "train.epochs": 2})
    assert (config.optimizer.lr, config.optimizer.base_lr) == (None, 0.5)
    assert (config.train.steps, config.train.epochs) == (None, 2)


def test_a_probe_can_be_told_and_switched_off() -> None:
    config = resolve("digits", {"probes.knn.every": 20, "probes.spectrum": False})
    assert config.probes["knn"].every == 20  # type: ignore[union-attr]
    assert config.probes["spectrum"] is False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimizer.lrr=1"], r"no setting is named 'optimizer.lrr'; did you mean optimizer.lr"),
        (["nothing.at.all=1"], r"no setting is named 'nothing.at.all'"),
        (["optimizer.lr=-1"], r"optimizer.lr was -1: Input should be greater than 0"),
        (["model.stem=conv"], r"model.stem was 'conv': Input should be 'patchify', 'convolutional', 'c_18gf', 's1'"),
        (["optimizer.name=adamww"], r"no optimizer is named 'adamww'; did you mean adamw"),
        (["method.name=moco"], r"no method is named 'moco'; did you mean moco_v3"),
        (["probes.kn.every=3"], r"no setting is named 'probes.kn.every'; did you mean probes.knn.every"),
        (["probes.knn=3"], r"probes.knn can be set to false only; it was 3"),
        (["optimizer.lr"], r"--set takes key=value, 'optimizer.lr' was given"),
        (
            ["optimizer.lr=1", "optimizer.base_lr=2"],
            r"optimizer.lr was 1 and optimizer.base_lr was 2: give one of them",
        ),
        (["train.steps=true"], r"train.steps was True: Input should be a number"),
        (["checkpoint.keep=false"], r"checkpoint.keep was False: Input should be a number"),
    ],
)
def test_wrong_settings_are_named(settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve("digits", parse_settings(settings))


def test_values_are_toml_where_they_can_be() -> None:
    parsed = parse_settings(["a=1", "b=1e-3", "c=true", "d=[1, 2]", "e=text", 'f="1"', "g=a=b"])
    assert parsed == {"a": 1, "b": 1e-3, "c": True, "d": [1, 2], "e": "text", "f": "1", "g": "a=b"}


def test_a_file_and_the_data_option(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('preset = "moco-v3-vit-s"\n[optimizer]\nlr = 0.5\n[probes.knn]\nevery = 7\n')
    config: Config = choose(None, None, file, ["optimizer.lr=0.25"])
    assert (config.preset, config.optimizer.lr, config.probes["knn"].every) == ("moco-v3-vit-s", 0.25, 7)  # type: ignore[union-attr]
    assert choose("digits", None, file, []).preset == "digits"
    assert choose(None, tmp_path, None, []).preset == "small"
    assert choose(None, None, None, []).preset == "digits"
    file.write_text("[optimizer\n")
    with pytest.raises(InputError, match="is no TOML"):
        choose(None, None, file, [])
    with pytest.raises(InputError, match="cannot be read: No such file"):
        choose(None, None, tmp_path / "none.toml", [])
    with pytest.raises(InputError, match=r"no preset is named 'x' \(available: digits"):
        choose("x", None, None, [])
