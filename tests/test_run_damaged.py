"""Truth: the part that was damaged by hand must be named, and every other row must be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import HEADER, LABELS, NORMS, assert_holds, rows, writer

from stabilitylab.errors import InputError
from stabilitylab.run import SCHEMA, Run, RunWriter

STEPS = np.arange(50, 100)
ONES = np.ones(50, "float32")
DAMAGED = "00000050-00000099.parquet"


def three_parts(path: Path) -> Path:
    """Write three parts and return the middle one."""
    made = writer(path)
    for first in (0, 50, 100):
        made.write(NORMS, *rows(first, first + 50))
    return path / "series" / NORMS / DAMAGED


def table(**columns: Any) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table({name.replace("_", "."): each for name, each in columns.items()}), path)


def same_names(path: Path) -> None:
    pq.write_table(
        pa.Table.from_arrays([pa.array(ONES), pa.array(ONES), pa.array(STEPS)], ["a.w", "a.w", "step"]), path
    )


FOREIGN: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not ours"),
    "magic only": lambda path: path.write_bytes(b"PAR1PAR1"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "without its beginning": lambda path: path.write_bytes(path.read_bytes()[20:]),
    "no rows": table(step=STEPS[:0], a_w=ONES[:0]),
    "no step": table(a_w=ONES),
    "no columns": lambda path: pq.write_table(pa.table({}), path),
    "text columns": table(step=STEPS, a_w=["x"] * 50),
    "categories": table(step=STEPS, a_w=pa.array(["x"] * 50).dictionary_encode()),
    "times": table(step=STEPS, a_w=STEPS.astype("datetime64[s]")),
    "truths": table(step=STEPS, a_w=STEPS > 60),
    "nested": table(step=STEPS, a_w=[{"x": 1.0}] * 50),
    "lists": table(step=STEPS, a_w=[[1.0]] * 50),
    "same names": same_names,
    "steps as floats": table(step=STEPS.astype("float64"), a_w=ONES),
    "steps with gaps": table(step=[*STEPS[:-1].tolist(), None], a_w=ONES),
    "steps before": table(step=STEPS - 10, a_w=ONES),
    "steps after": table(step=STEPS + 10, a_w=ONES),
    "fewer steps": table(step=STEPS[:-1], a_w=ONES[:-1]),
    "more steps": table(step=np.arange(50, 101), a_w=np.ones(51)),
    "steps twice": table(step=np.repeat(STEPS[::2], 2), a_w=ONES),
    "steps in disorder": table(step=[50, *STEPS[1:-1][::-1].tolist(), 99], a_w=ONES),
    "columns of another series": table(step=STEPS, c_w=ONES),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_damaged_part_is_named_and_the_rest_stays_readable(tmp_path: Path, kind: str) -> None:
    FOREIGN[kind](three_parts(tmp_path / "r"))
    with pytest.raises(InputError, match=rf"{DAMAGED} is (damaged|no part of).*reads the rest"):
        Run(tmp_path / "r")[NORMS]
    run = Run(tmp_path / "r", damaged="skip")
    frame = run[NORMS]
    steps, values = rows(0, 150)
    left = np.r_[0:50, 100:150]
    expected = pd.DataFrame(values[left], index=pd.Index(steps[left], name="step"), columns=LABELS)
    pd.testing.assert_frame_equal(frame, expected, check_exact=True)
    run.read(NORMS, ["a.w"])
    (message,) = run.skipped
    assert DAMAGED in message


def test_a_flipped_bit_never_changes_a_value_in_silence(tmp_path: Path) -> None:
    part = three_parts(tmp_path / "r")
    sound = part.read_bytes()
    pages = len(sound) - 8 - int.from_bytes(sound[-8:-4], "little")
    caught = 0
    for place in range(4, pages, 5):
        part.write_bytes(sound[:place] + bytes([sound[place] ^ 16]) + sound[place + 1 :])
        try:
            assert_holds(Run(tmp_path / "r")[NORMS], 150)  # a bit of a page's header, to which nobody looks
        except InputError:
            caught += 1
    assert caught > pages // 5 * 0.8


def test_only_what_is_asked_for_must_be_sound(tmp_path: Path) -> None:
    part = three_parts(tmp_path / "r")
    content = bytearray(part.read_bytes())
    content[40] ^= 16  # in the first column
    part.write_bytes(content)
    assert len(Run(tmp_path / "r").read(NORMS, ["b.w"])) == 150
    with pytest.raises(InputError, match="is damaged"):
        Run(tmp_path / "r").read(NORMS, ["a.w"])


def test_files_that_are_no_parts_are_left_alone(tmp_path: Path) -> None:
    made = writer(tmp_path / "r")
    made.write(NORMS, *rows(0, 50))
    folder = tmp_path / "r/series" / NORMS
    for name in ("notes.txt", ".00000050-00000099.parquet.1.tmp", "50-99.parquet", f"{9:020d}-{9:020d}.parquet"):
        (folder / name).write_bytes(b"not ours")
    assert_holds(Run(tmp_path / "r")[NORMS], 50)


def test_parts_that_overlap_are_named(tmp_path: Path) -> None:
    part = three_parts(tmp_path / "r")
    pq.write_table(
        pa.table({"a.w": np.ones(70), "step": np.arange(80, 150)}), part.with_name("00000080-00000149.parquet")
    )
    with pytest.raises(InputError, match=r"00000080-00000149\.parquet is damaged: it overlaps"):
        Run(tmp_path / "r")[NORMS]


# ---- claims that do not fit in memory


def claims(path: Path, number: int) -> None:
    """Let the footer of a part of 50 rows claim any number of them."""
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    body, footer = content[: -8 - length], content[-8 - length : -8]
    varint, rest = b"", 2 * number
    while rest:
        varint += bytes([rest & 127 | (128 if rest > 127 else 0)])
        rest >>= 7
    assert footer.count(b"\x16\x64") > 3  # an integer of the compact protocol: 50, as a zigzag
    footer = footer.replace(b"\x16\x64", b"\x16" + varint)
    path.write_bytes(body + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def bomb(path: Path, number: int) -> None:
    """Write a part whose rows take no room on disk."""
    columns = pa.table({"a.w": np.zeros(number, "float32"), "step": np.arange(number)})
    encoding = {"step": "DELTA_BINARY_PACKED"}
    pq.write_table(columns, path, compression="zstd", use_dictionary=["a.w"], column_encoding=encoding)


@pytest.mark.parametrize("number", [10**6, 10**9, 10**12])
def test_a_footer_that_claims_billions_of_rows_takes_no_memory(tmp_path: Path, number: int) -> None:
    part = three_parts(tmp_path / "r")
    claims(part, 50)
    assert len(Run(tmp_path / "r")[NORMS]) == 150
    claims(part, number)
    wide = part.rename(part.with_name(f"00000050-{number + 49:08d}.parquet"))
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(InputError, match=rf"{wide.name} is no part of a series: {number} rows in \d+ bytes"):
        Run(tmp_path / "r")[NORMS]
    assert pa.default_memory_pool().max_memory() - before < 2**20
    assert len(Run(tmp_path / "r", damaged="skip")[NORMS]) == 100


def test_rows_that_take_no_room_on_disk_are_refused(tmp_path: Path) -> None:
    writer(tmp_path / "r").close("completed")
    folder = tmp_path / "r/series" / NORMS
    folder.mkdir(parents=True)
    bomb(folder / "00000000-04999999.parquet", 5_000_000)
    allocated = pa.total_allocated_bytes()
    peak = pa.default_memory_pool().max_memory()
    with pytest.raises(InputError, match=r"5000000 rows in \d{3,6} bytes"):
        Run(tmp_path / "r")[NORMS]
    assert pa.default_memory_pool().max_memory() <= max(peak, allocated + 2**20)


def test_what_the_writer_writes_is_no_bomb(tmp_path: Path) -> None:
    made = RunWriter(tmp_path / "r", HEADER)
    made.declare("constant", ["a"])
    made.write("constant", np.arange(10**6), np.zeros((10**6, 1), "uint8"))
    assert len(Run(tmp_path / "r")["constant"]) == 10**6


# ---- run.json


def header(**changes: Any) -> str:
    return json.dumps({"schema": SCHEMA, "layers": HEADER["layers"], "series": {}, "attempts": []} | changes)


def entry(name: str, **about: Any) -> str:
    return header(series={name: about, NORMS: {"labels": LABELS}})


LAYERS = {"names": ["a"], "of": {}, "first": "a"}
HEADERS = {
    "missing": (None, "holds no run.json$"),
    "empty": ("", "is damaged"),
    "cut": (header()[:-3], "is damaged"),
    "a list": ("[]", "does not describe a run"),
    "deep": ("[" * 100_000, "is damaged"),
    "a huge number": (header().replace('"schema": 1', '"schema": ' + "1" * 5000), "is damaged"),
    "no UTF-8": (b'{"schema": 1, "x": "\xff\xfe"}', "is damaged"),
    "UTF-16": (header().encode("utf-16"), "is damaged"),
    "no schema": ('{"a": 1}', "no schema version"),
    "schema true": (header(schema=True), "no schema version"),
    "schema 0": (header(schema=0), "no schema version"),
    "schema NaN": (header(schema=float("nan")), "no schema version"),
    "newer schema": (header(schema=SCHEMA + 1), f"has schema {SCHEMA + 1}; this version of stabilitylab reads up to"),
    "layers a list": (header(layers=[]), "'layers' is missing or"),
    "layers in lists": (header(layers=LAYERS | {"of": {"x": ["a"]}}), "'layers' is missing or"),
    "unknown layer": (header(layers=LAYERS | {"of": {"x": "b"}}), "'layers' is missing or"),
    "first layer a number": (header(layers=LAYERS | {"first": 1}), "'layers' is missing or"),
    "series a list": (header(series=[]), "'series' is missing or"),
    "attempts of numbers": (header(attempts=[1]), "'attempts' is missing or"),
    "status a list": (header(attempts=[{"status": []}]), "'attempts' is missing or"),
    "configuration a list": (header(config=[]), "'config' is missing or"),
    "disabled a text": (header(disabled="x"), "'disabled' is missing or"),
}


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("damaged", ["error", "skip"])
def test_what_is_no_run_gets_a_clear_error(tmp_path: Path, kind: str, damaged: Any) -> None:
    content, message = HEADERS[kind]
    if content is not None:
        (tmp_path / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        Run(tmp_path, damaged)
    if content is not None:
        with pytest.raises(InputError, match=message):
            RunWriter(tmp_path, HEADER, first_step=5)


def test_a_header_of_100_megabytes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(header()[:-1] + " " * 100 * 10**6 + "}")
    for read in (lambda: Run(tmp_path), lambda: RunWriter(tmp_path, HEADER, 5)):
        with pytest.raises(InputError, match="is larger than 32 MiB"):
            read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (entry("../x", labels=["a"]), r"'\.\./x' is no name of a series"),
        (entry("..", labels=["a"]), "is no name of a series"),
        (entry("/etc", labels=["a"]), "is no name of a series"),
        (entry("a/b", labels=["a"]), "is no name of a series"),
        (entry("a\\b", labels=["a"]), "is no name of a series"),
        (entry("a\0b", labels=["a"]), "is no name of a series"),
        (entry("", labels=["a"]), "is no name of a series"),
        (entry("a" * 5000, labels=["a"]), "is no name of a series"),
        (entry("x", labels="a"), "the labels of x must be"),
        (entry("x", labels=["a", "a"]), "the labels of x must be"),
        (entry("x", labels=["step"]), "the labels of x must be"),
        (entry("x", labels=["\ud800"]), "the labels of x must be"),
        (entry("x", labels=[["a"]]), "the labels of x must be"),
        (entry("x"), "the labels of x must be"),
    ],
)
def test_a_damaged_series_is_named_and_the_others_stay_readable(tmp_path: Path, content: str, message: str) -> None:
    made = writer(tmp_path / "r")
    made.write(NORMS, *rows(0, 50))
    del made
    (tmp_path / "r/run.json").write_text(content)
    with pytest.raises(InputError, match=f"{message}.*reads the rest"):
        Run(tmp_path / "r")
    run = Run(tmp_path / "r", damaged="skip")
    assert run.series == (NORMS,)
    assert message.replace("\\", "") in run.skipped[0].replace("\\\\", "\\")
    assert_holds(run[NORMS], 50)
    with pytest.raises(InputError, match=message):
        RunWriter(tmp_path / "r", HEADER, 20)
    assert_holds(run[NORMS], 50)


@pytest.mark.parametrize("name", ["../x", "..", "/tmp/x", "a..b", ".a", "a.", "a/b", "", "a\n"])
def test_no_path_is_taken_for_a_series(tmp_path: Path, name: str) -> None:
    made = writer(tmp_path / "r")
    with pytest.raises(InputError, match="no name of a series"):
        made.declare(name, ["a"])
    with pytest.raises(InputError, match="was not declared"):
        made.write(name, np.arange(2), np.ones((2, 1)))
    with pytest.raises(InputError, match="has no series"):
        Run(tmp_path / "r")[name]


# ---- nothing is executed


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    payload = b"cposix\nsystem\n(S'touch " + str(trap).encode() + b"'\ntR."
    part = three_parts(tmp_path / "r")
    field = pa.field(
        "a.w",
        pa.float32(),
        metadata={"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": payload},
    )
    pandas = {"index_columns": ["step"], "columns": [{"name": "a.w", "numpy_type": f"object{payload!r}"}]}
    schema = pa.schema([field, pa.field("step", pa.int64())], metadata={"pandas": json.dumps(pandas), "x": payload})
    pq.write_table(pa.Table.from_arrays([pa.array(ONES), pa.array(STEPS)], schema=schema), part)
    run = Run(tmp_path / "r", damaged="skip")
    assert len(run[NORMS]) in (100, 150)
    assert not trap.exists()


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"index_columns": 3}', b"\xff"])
def test_what_others_say_in_the_footer_does_not_matter(tmp_path: Path, metadata: bytes) -> None:
    part = three_parts(tmp_path / "r")
    content = pq.read_table(part).replace_schema_metadata({"pandas": metadata})
    pq.write_table(content, part)
    assert_holds(Run(tmp_path / "r")[NORMS], 150)
