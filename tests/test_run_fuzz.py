"""Truth: a mutated run gives the declared columns over increasing steps, or an InputError, and nothing else.

Warnings are errors in these tests; the mutations are the same in every run of them.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_runs import HEADER, LABELS, NORMS, rows, writer

from stabilitylab.errors import InputError
from stabilitylab.layers import Layers
from stabilitylab.run import Run

Folder = dict[str, bytes]
"""The files of a run: path to content."""

MEMORY = 2**30

# ---- mutations of run.json

KEYS = ["schema", "layers", "series", "attempts", "config", "names", "of", "first", "labels", "status", NORMS, "step"]
TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
WORDS = st.sampled_from([*KEYS, *LABELS, "", "..", "../x", "/etc/passwd", "a" * 300, "\0", "\ud800", "@deep", "@huge"])
SCALARS = st.none() | st.booleans() | st.integers() | st.integers(10**300, 10**310) | st.floats() | TEXT | WORDS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | TEXT, inner, max_size=4),
    max_leaves=10,
)
RAW = {'"@deep"': "[" * 50_000 + "]" * 50_000, '"@huge"': "9" * 5000}
"""What json.dumps cannot write."""


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Return every container in a JSON value with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


@st.composite
def headers(draw: st.DrawFn, content: bytes) -> bytes:
    header = json.loads(content)
    for _ in range(draw(st.integers(0, 3))):
        container, key = draw(st.sampled_from(list(places(header)) or [([None], 0)]))
        act = draw(st.sampled_from(["replace", "replace", "delete", "rename", "copy"]))
        if act == "replace":
            container[key] = draw(VALUES)
        elif act == "delete":
            del container[key]
        elif act == "rename" and isinstance(container, dict):
            container[draw(WORDS | TEXT)] = container.pop(key)
        elif act == "copy" and isinstance(container, dict):
            container[draw(WORDS)] = container[key]
    text = json.dumps(header)
    for word, raw in RAW.items():
        text = text.replace(word, raw)
    if draw(st.booleans()):
        key, value = draw(st.sampled_from(KEYS)), json.dumps(draw(SCALARS))
        text = f'{{"{key}": {value}, ' + text[1:] if draw(st.booleans()) else f'{text[:-1]}, "{key}": {value}}}'
    return text.encode()


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a file with some bits flipped, bytes replaced, cut or inserted."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(changed) - 1, 0)))
        act = draw(st.sampled_from(["flip", "flip", "byte", "cut", "remove", "insert", "end"]))
        if act == "flip" and changed:
            changed[place] ^= 1 << draw(st.integers(0, 7))
        elif act == "byte" and changed:
            changed[place] = draw(st.integers(0, 255))
        elif act == "cut":
            del changed[place:]
        elif act == "remove":
            del changed[place : place + draw(st.integers(1, 60))]
        elif act == "insert":
            changed[place:place] = draw(st.binary(max_size=20))
        elif act == "end" and changed:  # where the footer is
            changed[-1 - place % min(64, len(changed))] ^= 1 << draw(st.integers(0, 7))
    return bytes(changed)


# ---- mutations of parts

TYPES = ["int8", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64", "bool", "str", "datetime64[s]"]


@st.composite
def columns(draw: st.DrawFn, number: int) -> pa.Array:
    kind = draw(st.sampled_from([*TYPES, "null", "list", "struct", "dictionary", "gaps", "decimal", "steps"]))
    if kind == "steps":
        return pa.array(np.arange(number) + draw(st.sampled_from([0, 0, 0, 50, -5, 10**12])))
    if kind in TYPES:
        return pa.array(np.arange(number).astype(kind))
    wide = np.arange(number).tolist()
    made: dict[str, Callable[[], pa.Array]] = {
        "null": lambda: pa.nulls(number),
        "list": lambda: pa.array([[each] for each in wide], pa.list_(pa.int64())),
        "struct": lambda: pa.array([{"x": each} for each in wide], pa.struct({"x": pa.int64()})),
        "dictionary": lambda: pa.array(["x"] * number).dictionary_encode(),
        "gaps": lambda: pa.array([None if each % 3 else each for each in wide], pa.int64()),
        "decimal": lambda: pa.array(wide, pa.int64()).cast(pa.decimal128(30, 2)),
    }
    return made[kind]()


@st.composite
def foreign(draw: st.DrawFn, path: Path) -> bytes:
    """Draw a valid Parquet file of anything."""
    number = draw(st.sampled_from([0, 1, 10, 50, 50, 50]))
    names = draw(st.lists(st.sampled_from([*LABELS, "step", "step", "x", ""]), max_size=4))
    table = pa.Table.from_arrays([draw(columns(number)) for _ in names], names)
    metadata = draw(st.sampled_from([None, {"pandas": "{"}, {"pandas": '{"index_columns": [3]}'}, {"x": "\0"}]))
    compression = draw(st.sampled_from(["zstd", "snappy", "gzip", "none"]))
    pq.write_table(table.replace_schema_metadata(metadata), path, compression=compression)
    return path.read_bytes()


def names() -> st.SearchStrategy[str]:
    steps = st.sampled_from([0, 1, 25, 49, 50, 99, 149, 10**9, 10**17, 10**30])
    return st.builds("{:08d}-{:08d}.parquet".format, steps, steps) | st.sampled_from(["x", ".parquet", "run.json"])


@st.composite
def folders(draw: st.DrawFn, sound: Folder, scratch: Path) -> Folder:
    folder = dict(sound)
    if draw(st.booleans()):
        folder["run.json"] = draw(headers(folder["run.json"]))
        if draw(st.integers(0, 3)) == 0:
            folder["run.json"] = draw(st.binary(max_size=40) | damaged(folder["run.json"]))
    for _ in range(draw(st.integers(0, 3))):
        parts = sorted(each for each in folder if each != "run.json")
        if not parts:
            break
        part, other = draw(st.sampled_from(parts)), draw(st.sampled_from(parts))
        act = draw(st.sampled_from(["damage", "damage", "foreign", "swap", "rename", "copy", "empty", "delete"]))
        if act == "damage":
            folder[part] = draw(damaged(folder[part]))
        elif act == "foreign":
            folder[part] = draw(foreign(scratch))
        elif act == "swap":
            folder[part], folder[other] = folder[other], folder[part]
        elif act == "rename":
            folder[f"{os.path.dirname(other)}/{draw(names())}"] = folder.pop(part)
        elif act == "copy":
            folder[f"{os.path.dirname(other)}/{draw(names())}"] = folder[part]
        elif act == "empty":
            folder[part] = b""
        else:
            del folder[part]
    return folder


# ---- the reader


def read_everything(path: Path, damaged: Literal["error", "skip"]) -> bool:
    """Read a run in every public way, and tell whether all of it was readable."""
    with suppress(InputError):
        run = Run(path, damaged)
        assert isinstance(run.status, str)
        assert isinstance(run.config, dict)
        assert isinstance(run.layers, Layers)
        assert run.name == path.name
        assert repr(run).startswith("Run(")
        assert tuple(run) == run.series
        assert "nothing" not in run
        readable = 0
        for name in run:
            with suppress(InputError):
                assert name in run
                labels = run.about(name)["labels"]
                frame = run[name]
                assert list(frame.columns) == labels
                assert frame.index.dtype == "int64"
                assert frame.index.is_monotonic_increasing
                assert frame.index.is_unique
                assert {each.kind for each in frame.dtypes} <= {"i", "u", "f"}
                for label in labels[:2]:
                    alone = run.read(name, [label])[label]
                    assert damaged == "skip" or alone.equals(frame[label])
                    assert frame.index.isin(alone.index).all()  # another column may be damaged
                readable += 1
        return readable == len(run.series) and not run.skipped
    return False


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    path = tmp_path_factory.mktemp("sound") / "r"
    made = writer(path)
    made.declare("other", ["a.w"])
    for first in (0, 50, 100):
        made.write(NORMS, *rows(first, first + 50))
        made.write("other", np.arange(first, first + 50), np.ones((50, 1), "int32"))
    made.update(config=HEADER["config"] | {"depth": {"x": [1, 2, {"y": None}]}})
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("[!.]*.*") if each.is_file()}


@pytest.mark.slow
def test_five_hundred_mutated_runs(sound: Folder, tmp_path_factory: pytest.TempPathFactory) -> None:
    here = tmp_path_factory.mktemp("mutated")
    answers = {True: 0, False: 0}

    @settings(
        max_examples=500,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )
    @given(st.data())
    def read(data: st.DataObject) -> None:
        path = here / "r"
        shutil.rmtree(path, ignore_errors=True)
        for name, content in data.draw(folders(sound, here / "scratch")).items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        for damaged in ("error", "skip"):
            answers[read_everything(path, damaged)] += 1

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < MEMORY
    assert min(answers.values()) > 100, answers
