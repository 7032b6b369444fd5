"""What is installed: every probe, what it records, needs and costs, found out by trying it on a tiny model."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stabilitylab import plugins
from stabilitylab.errors import InputError
from stabilitylab.probe import Step
from stabilitylab.target import HeldOut, Target, make_target

__all__ = ["Entry", "list_probes", "tell"]

IMAGES, CLASSES = 64, 4


@dataclass(frozen=True)
class Entry:
    """One installed probe."""

    name: str
    module: str
    distribution: str
    """Name and version of the distribution that brings it; empty if that is not known."""
    records: str = ""
    """The first sentence of its module, or of its class."""
    series: Mapping[str, int] = field(default_factory=dict)
    """The series that it records of a tiny ViT, and the number of columns of each there."""
    every: int | None = None
    """Its schedule by default."""
    needs: tuple[str, ...] = ()
    """What it cannot do without: of what the loop gives to the recorder."""
    outputs: tuple[str, ...] = ()
    """The named outputs of each step without which it records fewer series, or none."""
    cost: str = ""
    """What one measurement costs, in its own words."""
    error: str = ""
    """Why it cannot be imported, or could not be tried."""

    def to_json(self) -> dict[str, Any]:
        """Return the entry as JSON types."""
        return asdict(self)


def list_probes() -> list[Entry]:
    """Return every installed probe, sorted by name; one that cannot be imported says why."""
    brought_by = {point.value: point.dist for point in entry_points(group="stabilitylab.probes")}
    trial = Trial()
    entries = []
    for name, module in plugins.names("probes").items():
        brings = brought_by.get(module.rpartition(".")[0])
        distribution = "" if brings is None else f"{brings.name} {brings.version}"
        entries.append(Entry(name, module, distribution, **_known(name, module, trial)))
    return entries


def tell(entries: Sequence[Entry]) -> None:
    """Print the list as a table."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=110)
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("probe", no_wrap=True)
    table.add_column("every", no_wrap=True, justify="right")
    for head, ratio in (("records", 4), ("needs", 2), ("costs", 3)):
        table.add_column(head, ratio=ratio, overflow="fold")
    for entry in entries:
        if entry.error:
            lines = [f"[red]{escape(entry.error)}[/red]"]
        else:
            lines = [f"{escape(entry.records)}:", escape(", ".join(entry.series))]
        needs = [*entry.needs, *(f"outputs[{name!r}]" for name in entry.outputs)]
        every = "" if entry.every is None else str(entry.every)
        cost = "" if entry.error else entry.cost or "not said"
        cells = (f"[bold]{escape(entry.name)}[/bold]", every, "\n".join(lines), escape(", ".join(needs)), escape(cost))
        table.add_row(*cells)
    console.print(table)
    sources = {entry.distribution or entry.module.rpartition(".")[0] for entry in entries}
    for source in sorted(sources):
        names = [entry.name for entry in entries if (entry.distribution or entry.module.rpartition(".")[0]) == source]
        console.print(f"from {escape(source)}: {escape(', '.join(names))}")


def _known(name: str, module: str, trial: Trial) -> dict[str, Any]:
    try:
        kind = plugins.load("probes", name)
        known: dict[str, Any] = {
            "records": _sentence(sys.modules[module].__doc__ or kind.__doc__ or ""),
            "every": kind.Parameters.model_fields["every"].default,
            "cost": kind.cost,
        }
    except (Exception, SystemExit) as error:  # whatever a foreign module does, the list goes on
        return {"error": _reason(error)}
    try:
        series = trial.measured(kind, trial.outputs)
        return known | {"series": series, "needs": trial.needs(kind), "outputs": trial.outputs_of(kind, series)}
    except Exception as error:
        return known | {"error": f"the trial on a tiny model failed: {_reason(error)}"}


def _reason(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def _sentence(text: str) -> str:
    """Return the first sentence of a docstring, on one line and without its marks."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return paragraph.partition(". ")[0].removesuffix(".").replace("`", "")


class Trial:
    """A tiny ViT after a training step, with everything that a probe may want."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            images, labels = torch.randn(IMAGES, 1, 8, 8), torch.arange(IMAGES) % CLASSES
            self._model = VisionTransformer(
                img_size=8, patch_size=4, in_chans=1, num_classes=CLASSES, embed_dim=8, depth=2, num_heads=2
            )
        self._model.diagnostics = ("NAME",)  # type: ignore[assignment]
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-3)
        stabilizers = SimpleNamespace(labels={"coefficient": ["total"]}, latest={})
        self._optimizer.stabilizers = stabilizers  # type: ignore[attr-defined]
        cross_entropy(self._model(images), labels).backward()
        self._optimizer.step()
        self._held_out = HeldOut(images, labels, images, labels, self._encode)
        teacher: nn.Module = deepcopy(self._model).requires_grad_(False)
        self._target = make_target(
            self._model, self._optimizer, held_out=self._held_out, inputs=images[:4], teacher=teacher
        )
        with torch.no_grad():
            features = self._encode(images)
        others = dict.fromkeys(("prediction", "key", "positive"), features["projection"].flip(1))
        told = {"labels": labels, "indices": torch.arange(IMAGES), "diagnostics.NAME": torch.zeros(())}
        self.outputs: Mapping[str, Tensor] = {**features, **others, **told}
        """The named outputs of a step that probes are known to ask for."""

    def _encode(self, images: Tensor) -> dict[str, Tensor]:
        representation = self._model.forward_head(self._model.forward_features(images), pre_logits=True)
        return {"representation": representation, "projection": self._model.head(representation)}

    def needs(self, kind: Any) -> tuple[str, ...]:
        """Return what a probe cannot be built without, by leaving out one thing after another."""
        unlabeled = replace(self._held_out, labels=None, bank_labels=None)
        plain = torch.optim.SGD(self._model.parameters(), lr=1e-3)
        plain.stabilizers = self._optimizer.stabilizers  # type: ignore[attr-defined]
        silent = copy(self._model)
        del silent.diagnostics
        # of each line the first that fails is told: it implies the others
        groups: tuple[dict[str, dict[str, Any]], ...] = (
            {
                "held-out images with labels": {"held_out": unlabeled},
                "held-out images": {"held_out": None},
                "inputs or held-out images": {"held_out": None, "inputs": None},
            },
            {
                "an optimizer with stabilizers": {"optimizer": copy(self._optimizer)},  # which leaves them out
                "an Adam-like optimizer": {"optimizer": plain},
                "an optimizer": {"optimizer": None},
            },
            {"a model with diagnostics": {"model": silent}},
            {"a momentum encoder": {"teacher": None}},
        )
        failing = ([need for need, missing in group.items() if not self._takes(kind, missing)] for group in groups)
        return tuple(each[0] for each in failing if each)

    def _takes(self, kind: Any, missing: Mapping[str, Any]) -> bool:
        try:
            kind(kind.Parameters(), self._fresh(missing))
        except InputError:
            return False
        return True

    def _fresh(self, missing: Mapping[str, Any]) -> Target:
        return replace(self._target, taps=set(), **missing)

    def outputs_of(self, kind: Any, series: Mapping[str, int]) -> tuple[str, ...]:
        """Return the outputs without which a probe does not measure these series."""
        if self.measured(kind, {}) == series:
            return ()
        kept = {name: {key: self.outputs[key] for key in self.outputs if key != name} for name in self.outputs}
        return tuple(name for name, others in kept.items() if self.measured(kind, others) != series)

    def measured(self, kind: Any, outputs: Mapping[str, Tensor]) -> dict[str, int]:
        """Return the series that a probe records in two steps, and the number of columns of each."""
        probe = kind(kind.Parameters(), self._fresh({}))
        probe.every = 1
        found: set[str] = set()
        for index in range(2):
            step = Step(index, probe.target, torch.tensor(1.0), outputs, {"momentum": 0.99}, IMAGES, 1.0, 1.0, 1.0)
            with torch.no_grad():
                probe.observe(step)
                found |= set(probe.measure(step) or {})
            self._optimizer.step()
        return {series: len(labels) for series, labels in probe.labels.items() if series in found}
