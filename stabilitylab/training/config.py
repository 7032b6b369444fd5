"""The configuration of a training: frozen sections, from a preset, a file and single settings, in that order."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, SerializeAsAny, model_validator

from stabilitylab import plugins
from stabilitylab.errors import InputError
from stabilitylab.models.vit import Model
from stabilitylab.parameters import Parameters, validated
from stabilitylab.training import presets
from stabilitylab.training.augment import Augment
from stabilitylab.training.checkpoint import Checkpoints
from stabilitylab.training.data import Data
from stabilitylab.training.optimizers import Optimizer
from stabilitylab.training.schedules import Schedule

__all__ = ["Config", "Train", "describe", "parse_settings", "read_file", "resolve"]

EITHER = (
    ("train.steps", "train.epochs"),
    ("optimizer.lr", "optimizer.base_lr"),
    ("schedule.warmup_steps", "schedule.warmup_epochs"),
)
"""Settings of which one replaces the other."""


class Train(Parameters):
    """The training itself."""

    steps: PositiveInt | None = None
    """Number of steps; give this or epochs."""
    epochs: float | None = Field(None, gt=0, le=1e6)
    """Number of passes over the training images."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of everything random: the same seed gives the same run, bit for bit, on the same machine."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto for the fastest there is."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward pass; fp16 scales the loss."""
    nonfinite: Literal["stop", "continue"] = "stop"
    """What to do when the loss is not finite."""
    deterministic: bool = False
    """Choose deterministic kernels on a GPU too, which is slower; the CPU's are."""

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        return self


class Record(Parameters):
    """How the training is recorded."""

    mirror: str | None = None
    """A tracker that hears what is recorded too, such as tensorboard; the Parquet files stay the truth."""
    budget: float | None = Field(None, gt=0)
    """Part of the training time that recording may take, such as 0.05: heavy probes then measure more seldom."""
    flush_steps: PositiveInt = 50
    """What is recorded reaches the disk after so many steps, or 5 seconds."""
    self_check: int = Field(5, ge=0)
    """So many first steps are compared with gradients computed the slow way; 0 for none."""


class Config(Parameters):
    """Everything that decides a training."""

    preset: str
    data: Data
    augment: Augment
    model: Model
    method: SerializeAsAny[Parameters]
    optimizer: Optimizer
    schedule: Schedule
    probes: dict[str, SerializeAsAny[Parameters] | Literal[False]]
    record: Record
    train: Train
    checkpoint: Checkpoints

    def num_steps(self, steps_per_epoch: int) -> int:
        """Return the number of steps of the training."""
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.epochs is not None
        return max(1, round(self.train.epochs * steps_per_epoch))

    def to_json(self) -> dict[str, Any]:
        """Return the resolved configuration as JSON types, as `resolve` takes it back."""
        return self.model_dump(mode="json")


SECTIONS: Mapping[str, type[Parameters]] = {
    "data": Data,
    "augment": Augment,
    "model": Model,
    "optimizer": Optimizer,
    "schedule": Schedule,
    "record": Record,
    "train": Train,
    "checkpoint": Checkpoints,
}


def resolve(preset: str, *layers: Mapping[str, Any]) -> Config:
    """Return the configuration of a preset with settings laid over it, later ones over earlier ones.

    Args:
        preset: name of a preset.
        layers: dotted name to value, as ``{"optimizer.lr": 1e-3, "probes.knn.every": 20}``.

    Raises:
        InputError: if the preset, a name or a value is not known or not valid.
    """
    settings = presets.load(preset)
    for layer in layers:
        if layer.get("method.name", settings.get("method.name")) != settings.get("method.name"):
            settings = {name: value for name, value in settings.items() if not name.startswith("method.")}
        for name, value in layer.items():
            for pair in EITHER:
                if name in pair and value is not None:
                    settings = {key: old for key, old in settings.items() if key not in pair}
            settings[name] = value
    kinds = _kinds(str(settings.get("method.name", "moco_v3")))
    _check_names(settings, kinds)
    sections: dict[str, Any] = {}
    for section, kind in kinds.items():
        prefix = f"{section}."
        if settings.get(section) is False:
            sections[section] = False
            continue
        own = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
        sections[section] = validated(kind, own, section)
    probes = {key.removeprefix("probes."): sections.pop(key) for key in list(sections) if key.startswith("probes.")}
    return Config(preset=preset, probes=probes, **sections)


def _kinds(method: str) -> dict[str, type[Parameters]]:
    """Return the sections, dotted name to the class of their parameters."""
    kinds = dict(SECTIONS)
    kinds["method"] = plugins.load("methods", method).Config
    for probe in plugins.names("probes"):
        with suppress(InputError):  # a broken one of somebody else's has no settings, and is left out with its reason
            kinds[f"probes.{probe}"] = plugins.load("probes", probe).Parameters
    return kinds


def _check_names(settings: Mapping[str, Any], kinds: Mapping[str, type[Parameters]]) -> None:
    known = [f"{section}.{field}" for section, kind in kinds.items() for field in kind.model_fields]
    switches = [section for section in kinds if section.startswith("probes.")]
    for name, value in settings.items():
        if name in known or (name in switches and value is False):
            continue
        if name in switches:
            raise InputError(f"{name} can be set to false only; it was {value!r}")
        near = get_close_matches(name, known + switches, n=3)
        section = name.rpartition(".")[0]
        others = [each for each in known if each.startswith(f"{section}.")] if section else []
        hint = f"did you mean {' or '.join(near)}?" if near else ""
        rest = f"in {section}: {', '.join(others)}" if others else f"sections: {', '.join(sorted(kinds))}"
        raise InputError(f"no setting is named {name!r}; {hint + ' ' if hint else ''}({rest})")


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Return ``key=value`` words as settings; a value is TOML where it can be, else text."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise InputError(f"--set takes key=value, {pair!r} was given")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        settings[name.strip()] = value
    return settings


def read_file(path: Path) -> dict[str, Any]:
    """Return the settings of a TOML file, dotted name to value.

    Raises:
        InputError: if the file is missing or no TOML.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the configuration {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"the configuration {path} is no TOML: {error}") from error
    return flatten(tree)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def describe(config: Config) -> Iterator[tuple[str, Any, str]]:
    """Yield every setting: its dotted name, its value, and the sentence that says what it is."""
    for section in ("data", "augment", "model", "method", "optimizer", "schedule", "record", "train", "checkpoint"):
        yield from _describe(section, getattr(config, section))
    for name, parameters in config.probes.items():
        if parameters is False:
            yield f"probes.{name}", False, "This probe is off."
        else:
            yield from _describe(f"probes.{name}", parameters)


def _describe(section: str, parameters: Parameters) -> Iterator[tuple[str, Any, str]]:
    for name, field in type(parameters).model_fields.items():
        yield f"{section}.{name}", getattr(parameters, name), (field.description or "").replace("\n", " ")
