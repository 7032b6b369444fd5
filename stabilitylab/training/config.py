"""The configuration of a training: frozen sections, from a preset, a file and single settings, in that order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, SerializeAsAny, field_validator, model_validator

from stabilitylab import plugins
from stabilitylab.errors import InputError
from stabilitylab.models import kind_of, vit
from stabilitylab.parameters import Parameters, validated
from stabilitylab.settings import flatten, parse_settings, read_file
from stabilitylab.training import presets
from stabilitylab.training.augment import Augment
from stabilitylab.training.checkpoint import Checkpoints
from stabilitylab.training.data import Data
from stabilitylab.training.injections import KINDS, Injection, read
from stabilitylab.training.optimizers import Optimizer
from stabilitylab.training.schedules import Schedule
from stabilitylab.training.stabilizers import Stabilize

__all__ = ["Config", "Train", "describe", "flatten", "parse_settings", "read_file", "resolve"]

DEFAULT_METHOD, DEFAULT_MODEL = "moco_v3", "vit"

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
    initial: Path | None = None
    """Weights to start from: a run, a checkpoint folder (their backbone), or a published MoCo v3 checkpoint."""
    nonfinite: Literal["stop", "continue"] = "stop"
    """What to do when the loss is not finite."""
    deterministic: bool = False
    """Choose deterministic kernels on a GPU too, which is slower; the CPU's are."""

    @field_validator("initial")
    @classmethod
    def _absolute(cls, initial: Path | None) -> Path | None:
        """Say of the run where its weights came from, wherever it is read."""
        return None if initial is None else initial.expanduser().absolute()

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
    model: SerializeAsAny[Parameters]
    method: SerializeAsAny[Parameters]
    optimizer: Optimizer
    stabilize: Stabilize
    schedule: Schedule
    probes: dict[str, SerializeAsAny[Parameters] | Literal[False]]
    record: Record
    train: Train
    checkpoint: Checkpoints
    inject: tuple[SerializeAsAny[Injection], ...] = ()

    def num_steps(self, steps_per_epoch: int) -> int:
        """Return the number of steps of the training."""
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.epochs is not None
        return max(1, round(self.train.epochs * steps_per_epoch))

    def to_json(self) -> dict[str, Any]:
        """Return the resolved configuration as JSON types, as `resolve` takes it back."""
        return self.model_dump(mode="json")


NAMED = ("model", "method", "optimizer", "schedule")
"""Sections whose name alone may be given: ``method=byol`` is ``method.name=byol``."""

SECTIONS: Mapping[str, type[Parameters]] = {
    "data": Data,
    "augment": Augment,
    "model": vit.Model,
    "optimizer": Optimizer,
    "stabilize": Stabilize,
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
    for given in layers:
        layer = {f"{name}.name" if name in NAMED else name: value for name, value in given.items()}
        for one, other in EITHER:
            if layer.get(one) is not None and layer.get(other) is not None:
                raise InputError(f"{one} was {layer[one]!r} and {other} was {layer[other]!r}: give one of them")
        if "model.name" in layer:
            settings = _with_model(settings, str(layer["model.name"]))
        if "method.name" in layer:
            settings = _with_method(preset, settings, str(layer["method.name"]))
        if "inject" in layer:
            settings = {name: value for name, value in settings.items() if not name.startswith("inject.")}
        for name, value in layer.items():
            for pair in EITHER:
                if name in pair and value is not None:
                    settings = {key: old for key, old in settings.items() if key not in pair}
            settings[name] = value
    inject = read(settings)
    settings = {name: value for name, value in settings.items() if name.partition(".")[0] != "inject"}
    kinds = _kinds(str(settings.get("method.name", DEFAULT_METHOD)), str(settings.get("model.name", DEFAULT_MODEL)))
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
    return Config(preset=preset, probes=probes, inject=inject, **sections)


def _with_model(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the settings with another backbone: sizes, and what it does not have, are left out."""
    before = str(settings.get("model.name", DEFAULT_MODEL))
    if name == before:
        return dict(settings)
    kind = kind_of(name)
    known = {f"model.{field}" for field in kind.Model.model_fields} - {f"model.{size}" for size in vit.SIZES["vit_s"]}
    if not kind is kind_of(before) is vit:  # what these say is of one model
        known -= {"model.patch_size", "model.stem", "model.frozen"}
    kept = {key: value for key, value in settings.items() if not key.startswith("model.") or key in known}
    return {**kept, "model.name": name}


def _with_method(preset: str, settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the settings with another method: those that it does not have are left out, and its own are laid over."""
    if name == settings.get("method.name", DEFAULT_METHOD):
        return dict(settings)
    kind = plugins.load("methods", name)
    known = {f"method.{field}" for field in kind.Config.model_fields}
    kept = {key: value for key, value in settings.items() if not key.startswith("method.") or key in known}
    own = dict(getattr(kind, "settings", {}).get(preset, {}))
    for pair in EITHER:
        if any(key in own for key in pair):
            kept = {key: value for key, value in kept.items() if key not in pair}
    return {**kept, **own, "method.name": name}


def _kinds(method: str, model: str) -> dict[str, type[Parameters]]:
    """Return the sections, dotted name to the class of their parameters."""
    kinds = dict(SECTIONS)
    kinds["model"] = kind_of(model).Model
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
        owners = _owners(name)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        hint = f"; it belongs to {', '.join(owners)};" if owners else hint
        rest = f"in {section}: {', '.join(others)}" if others else f"sections: {', '.join(sorted(kinds))}"
        raise InputError(f"no setting is named {name!r}{hint} ({rest})")


def _owners(name: str) -> list[str]:
    """Return the methods or backbones that have a setting."""
    section, _, field = name.partition(".")
    if section == "model":
        return list(vit.SIZES) if field in vit.Model.model_fields else []
    found = []
    for method in plugins.names("methods") if section == "method" else ():
        with suppress(InputError):  # a broken one of somebody else's has no settings
            found += [method] if field in plugins.load("methods", method).Config.model_fields else []
    return found


def describe(config: Config) -> Iterator[tuple[str, Any, str]]:
    """Yield every setting: its dotted name, its value, and the sentence that says what it is."""
    for section in (
        "data",
        "augment",
        "model",
        "method",
        "optimizer",
        "stabilize",
        "schedule",
        "record",
        "train",
        "checkpoint",
    ):
        yield from _describe(section, getattr(config, section))
    for name, parameters in config.probes.items():
        if parameters is False:
            yield f"probes.{name}", False, "This probe is off."
        else:
            yield from _describe(f"probes.{name}", parameters)
    for at, injection in enumerate(config.inject):
        yield from _describe(f"inject[{at}]", injection)
    if not config.inject:
        yield "inject", [], f"Disturbances that are planted, a list of tables; their kinds are {', '.join(KINDS)}."


def _describe(section: str, parameters: Parameters) -> Iterator[tuple[str, Any, str]]:
    for name, field in type(parameters).model_fields.items():
        yield f"{section}.{name}", getattr(parameters, name), (field.description or "").replace("\n", " ")
