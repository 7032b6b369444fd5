"""From the names that others log to series and labels: by pattern, the surest first."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from stabilitylab.errors import InputError
from stabilitylab.importing.sources import natural
from stabilitylab.layers import Layers, layers_of

__all__ = [
    "KNOWN",
    "MAGNITUDES",
    "PER_PARAMETER",
    "Pattern",
    "Place",
    "accuracies",
    "alphabetical",
    "in_given_order",
    "layers_in",
    "map_to",
    "parse_maps",
    "place",
]

TRAIN = r"(?:train(?:ing)?[/_.])?"
NORM = r"(?:grad(?:ient)?s?)(?:[_/.]?(?:l2_?)?norms?)"
LABEL = r"(?P<label>.+)"

NAMED = {"training.loss": "loss", "training.lr": "lr", "gradients.total": "total", "knn.accuracy": "bank"}
"""Series of one column, and what it is called."""

PER_PARAMETER = ("gradients.norm", "gradients.max", "updates.ratio", "adam.rms")
"""Series with a column for each parameter or layer."""

KNOWN = (*NAMED, *PER_PARAMETER)
"""Series that the analysis reads of an imported run."""

MAGNITUDES = ("gradients.norm", "gradients.max", "gradients.total", "updates.ratio", "adam.rms")
"""Series that hold nothing below zero."""

LEAF = re.compile(
    r"(?:.*[._])?(?:weight|bias|kernel|scale|embedding|embed|token|query|gamma|beta)s?(?:_\w+)?$", re.IGNORECASE
)


class Pattern(NamedTuple):
    """Columns whose whole name matches go to a series."""

    pattern: re.Pattern[str]
    series: str
    """Empty to leave them out; ``*`` where the pattern has a group ``series``."""
    given: bool = False
    """By the user."""


DEFAULTS = tuple(
    Pattern(re.compile(pattern, re.IGNORECASE), series)
    for pattern, series in (
        # what the mirrors of this package write
        (rf"(?P<series>(?:training|gradients|updates|adam|knn|spectrum)\.[a-z_]+)/{LABEL}", "*"),
        (rf"{TRAIN}(?:total_|global_)?{NORM}(?:[/_.](?:total|global|all))?", "gradients.total"),
        (rf"{TRAIN}grad_2(?:\.0)?_norm_total", "gradients.total"),
        (rf"{TRAIN}grad_2(?:\.0)?_norm/{LABEL}", "gradients.norm"),
        (rf"{TRAIN}grad_inf_norm/{LABEL}", "gradients.max"),
        (rf"{TRAIN}{NORM}[/.]{LABEL}", "gradients.norm"),
        (rf"{TRAIN}(?:grad(?:ient)?s?)/{LABEL}", "gradients.norm"),
        (rf"{LABEL}[/.]{NORM}", "gradients.norm"),
        (rf"{LABEL}[/.]grad(?:ient)?s?", "gradients.norm"),
        (rf"{TRAIN}loss(?:[/_](?:step|train))?", "training.loss"),
        (rf"{TRAIN}(?:total_loss|loss[/_]total)", "training.loss"),
        (rf"{TRAIN}(?:lr|learning_rate)(?:[-/]{LABEL})?", "training.lr"),
        (r"lr-(?P<label>.+)", "training.lr"),
        (r"(?:(?:val|valid|eval|test)[/_])?k-?nn(?:[/_]?(?:acc(?:uracy)?|top-?1|acc1))?(?:@1)?", "knn.accuracy"),
        (rf"{TRAIN}updates?[_/]?ratios?/{LABEL}", "updates.ratio"),
    )
)


class Place(NamedTuple):
    """Where a column goes."""

    series: str
    """Empty if it is left out."""
    label: str
    why: str = ""
    """Why it is left out, or not where a pattern says."""


def parse_maps(words: Iterable[str]) -> list[Pattern]:
    """Return ``PATTERN=SERIES`` words as patterns.

    Raises:
        InputError: if one is no pair, no regular expression, or names no series.
    """
    patterns = []
    for word in words:
        pattern, equals, series = word.rpartition("=")
        if not equals or not pattern:
            raise InputError(
                f"--map takes PATTERN=SERIES, such as 'grad_norm/(?P<label>.*)=gradients.norm'; {word!r} was given"
            )
        if series and not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", series):
            raise InputError(f"--map {word!r}: {series!r} is no name of a series: letters, digits, '_' and single dots")
        try:
            patterns.append(Pattern(re.compile(pattern), series, given=True))
        except re.error as error:
            raise InputError(f"--map {word!r}: {pattern!r} is no regular expression: {error}") from error
    return patterns


def place(columns: Mapping[str, bool], given: Sequence[Pattern] = (), apart: Collection[str] = ()) -> dict[str, Place]:
    """Return where each column goes: the patterns of the user first, then those of what others log.

    Of two columns for one place that no user asked for, the first one has it; the other, as all that matches nothing,
    becomes a series of its own under ``imported``. A histogram goes nowhere but to norms of gradients.

    Args:
        columns: name to whether it holds norms of histograms, in the order of the log.
        given: patterns of the user.
        apart: columns that become series of their own, whatever they match.

    Raises:
        InputError: if a pattern of the user matches nothing, or sends two columns to one place.
    """
    places: dict[str, Place] = {}
    taken: dict[tuple[str, str], str] = {}
    lost: dict[str, str] = {}
    ordered = sorted(columns, key=lambda name: columns[name])  # a scalar before what is estimated
    for pattern in [*given, *DEFAULTS]:
        matched = False
        for name in ordered:
            found = pattern.pattern.fullmatch(name)
            if found is None:
                continue
            matched = True
            if (
                name in places
                or name in apart
                or (columns[name] and not pattern.given and pattern.series != "gradients.norm")
            ):
                continue
            target = _target(pattern, found)
            if target.series and (target.series, target.label) in taken:
                other = taken[target.series, target.label]
                if pattern.given:
                    raise InputError(
                        f"--map sends both {other!r} and {name!r} to column {target.label!r} of {target.series}; "
                        "tell them apart with a group (?P<label>...) in the pattern"
                    )
                lost.setdefault(name, f"{other} is {target.series} already")
                continue
            places[name] = target
            taken[target.series, target.label] = name
        if pattern.given and not matched:
            shown = ", ".join(list(columns)[:12]) + (", ..." if len(columns) > 12 else "")
            raise InputError(f"--map: {pattern.pattern.pattern!r} matches no column; there are {shown}")
    names = {each.series for each in places.values()}
    for name in columns:
        if name not in places and columns[name]:
            places[name] = Place("", name, "a histogram of no gradient")
        elif name not in places:
            places[name] = Place(_own(name, names), _writable(name), lost.get(name, ""))
            names.add(places[name].series)
    return {name: places[name] for name in columns}


def _target(pattern: Pattern, found: re.Match[str]) -> Place:
    groups = found.groupdict()
    series = groups.get("series", "").lower() if pattern.series == "*" else pattern.series
    if not series:
        return Place("", found[0], "left out by --map")
    label = groups.get("label") or NAMED.get(series) or series.rpartition(".")[2]
    return Place(series, _writable(label))


def _writable(label: str) -> str:
    """Return a label that a run can hold: not that of its index, and no half of a character."""
    return "step_" if label == "step" else label.encode("utf-8", "replace").decode()


def _own(name: str, taken: set[str]) -> str:
    """Return a series of its own for a column: letters and digits of its name, and a number where that is taken."""
    plain = f"imported.{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')[:150] or 'column'}"
    series, number = plain, 1
    while series in taken:
        number += 1
        series = f"{plain}_{number}"
    return series


HELD_OUT = {"val", "valid", "validation", "eval", "test", "dev", "linear", "probe"}


def accuracies(names: Iterable[str]) -> list[str]:
    """Return which names are of accuracies, but for those of training batches; those of held-out data come first."""
    found = []
    for name in names:
        parts = set(re.findall(r"[a-z]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))
        is_one = parts & {"acc", "accuracy", "accuracies"} or {"top", "1"} <= parts
        if is_one and not parts & {"5", "10", "std", "stderr", "loss", "train", "training"}:
            found.append((not parts & HELD_OUT, name))
    return [name for _, name in sorted(found, key=lambda each: each[0])]


def map_to(name: str, series: str) -> str:
    """Return the value of ``--map`` that sends a column to a series, quoted for a shell."""
    return shlex.quote(f"{re.escape(name)}={series}")


def layers_in(labels: Sequence[str]) -> tuple[list[str], Layers | None]:
    """Return labels in the order of a model, and its layers, of labels that are parameters or layers.

    Alphabetical order, as many logs have it, is no order of a model: then blocks are put in the order of their
    numbers. Paths with slashes are read as if they had dots.
    """
    if not labels:
        return [], None
    ordered = list(labels)
    if ordered == sorted(ordered):
        ordered.sort(key=natural)
    plain = {label: label.replace("/", ".") for label in ordered}
    if 2 * sum(bool(LEAF.match(each)) for each in plain.values()) <= len(plain):  # layers, such as patch_embed
        plain = {label: f"{each}.weight" for label, each in plain.items()}
    if len(set(plain.values())) < len(plain):
        plain = {label: label for label in plain}
    try:
        found = layers_of(plain.values())
    except InputError:
        return ordered, None
    of = {label: found.of[each] for label, each in plain.items() if each in found.of}
    return ordered, Layers(found.names, of, found.first)


def in_given_order(layers: Layers | None, names: Sequence[str]) -> Layers | None:
    """Return the layers in the order of names; as they are if there are none.

    Raises:
        InputError: if the names are not those of the layers.
    """
    if not names:
        return layers
    known = layers.names if layers is not None else ()
    if sorted(names) != sorted(known):
        raise InputError(f"the layers are {', '.join(known) or 'not known'}; --layers names {', '.join(names)}")
    return Layers(tuple(names), layers.of, names[0]) if layers is not None else None


def alphabetical(names: Sequence[str]) -> bool:
    """Return whether layers are in the order of the alphabet, but for the numbers of blocks."""
    distinct = list(dict.fromkeys(re.split(r"\.|\d+", each)[0] for each in names))
    return len(distinct) > 2 and distinct == sorted(distinct)
