"""Truth: the folder beside the run, which must be the same to the byte after any reading and writing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import HEADER, NORMS, assert_holds, rows, writer

from stabilitylab.errors import InputError
from stabilitylab.run import Run, RunWriter, find_runs

PART = f"series/{NORMS}/00000050-00000099.parquet"
PLACES = ["run.json", "series", f"series/{NORMS}", PART]


def out(inside: Path, outside: Path) -> None:
    inside.symlink_to(outside)


def out_by_a_relative_path(inside: Path, outside: Path) -> None:
    inside.symlink_to(os.path.relpath(outside, inside.parent))


def to_nothing(inside: Path, outside: Path) -> None:
    inside.symlink_to(outside.with_name("nothing"))


def to_itself(inside: Path, outside: Path) -> None:
    inside.symlink_to(inside.name)


def to_each_other(inside: Path, outside: Path) -> None:
    inside.symlink_to("loop")
    (inside.parent / "loop").symlink_to(inside.name)


def to_a_device(inside: Path, outside: Path) -> None:
    inside.symlink_to("/dev/zero")


def pipe(inside: Path, outside: Path) -> None:
    os.mkfifo(inside)


def a_socket(inside: Path, outside: Path) -> None:
    here = Path.cwd()
    os.chdir(inside.parent)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(inside.name)
    os.chdir(here)


def other_kind(inside: Path, outside: Path) -> None:
    """Put a folder in place of a file, and a file in place of a folder."""
    inside.mkdir() if outside.is_file() else inside.write_text("no folder")


KINDS = [out, out_by_a_relative_path, to_nothing, to_itself, to_each_other, to_a_device, pipe, a_socket, other_kind]


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return when each file below a folder was changed, and what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (path.lstat().st_mtime_ns, content)
    return found


def two_runs(path: Path) -> tuple[Path, Path]:
    """Write the same run twice, of three parts, and nothing else: one to attack, one to attack with."""
    for name in ("inside", "outside"):
        made = writer(path / name)
        for first in (0, 50, 100):
            made.write(NORMS, *rows(first, first + 50))
        made.declare("other", ["a"])
        made.write("other", *(each[..., :1] if each.ndim > 1 else each for each in rows(0, 10)))
        del made
    return path / "inside", path / "outside"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_stays_in_the_run(tmp_path: Path, place: str, kind: Callable[[Path, Path], None]) -> None:
    run, outside = two_runs(tmp_path)
    (run / place).rename(tmp_path / "put aside")
    kind(run / place, outside / place)
    before = everything(outside)
    with pytest.raises(InputError):
        Run(run)[NORMS]
    if place == "run.json":
        with pytest.raises(InputError):
            Run(run, damaged="skip")
    else:
        skipping = Run(run, damaged="skip")
        assert len(skipping[NORMS]) == (100 if place == PART else 0)
        assert Path(place).name in skipping.skipped[0]
        assert len(skipping["other"]) == (0 if place == "series" else 10)
    assert everything(outside) == before


@pytest.mark.parametrize("place", [*PLACES, ".writer.lock"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [20, 70, 120])
def test_a_writer_stays_in_the_run(tmp_path: Path, place: str, kind: Callable[[Path, Path], None], step: int) -> None:
    run, outside = two_runs(tmp_path)
    (run / place).rename(tmp_path / "put aside")
    kind(run / place, outside / place)
    before = everything(outside)
    try:
        made = writer(run, step)
    except InputError:
        assert not (place == PART and step == 120)
    else:  # such a part lies before or after the step as a whole
        made.write(NORMS, *rows(step, step + 10))
        made.close("completed")
        assert place == ".writer.lock" or step != 70
    assert everything(outside) == before


@pytest.mark.parametrize("place", PLACES)
def test_a_link_that_appears_while_a_run_is_written_is_not_followed(tmp_path: Path, place: str) -> None:
    run, outside = two_runs(tmp_path)
    made = writer(run, 150)
    (run / place).rename(tmp_path / "put aside")
    out(run / place, outside / place)
    before = everything(outside)
    for first in range(150, 250, 2):
        try:
            made.write(NORMS, *rows(first, first + 2))
        except OSError:
            assert place.startswith("series")
    made.close("completed")
    assert everything(outside) == before


def test_a_temporary_file_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    run, outside = two_runs(tmp_path)
    before = everything(outside)
    for name in ("run.json", PART):
        target = run / name
        target.with_name(f".{target.name}.{os.getpid()}.tmp").symlink_to(outside / name)
    made = writer(run, 50)
    made.write(NORMS, *rows(50, 100))
    made.close("completed")
    assert everything(outside) == before
    assert_holds(Run(run)[NORMS], 100)


def test_a_run_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    run, outside = two_runs(tmp_path)
    link = tmp_path / "latest"
    link.symlink_to(run)
    made = writer(link, 100)
    link.unlink()
    link.symlink_to(outside)
    before = everything(outside)
    made.write(NORMS, *rows(100, 120))
    made.close("completed")
    assert everything(outside) == before
    assert_holds(Run(run)[NORMS], 120)


def test_a_program_that_changes_its_folder_still_writes_where_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = RunWriter("r", HEADER)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    made.declare(NORMS, ["a.w", "b.w"])
    made.write(NORMS, *rows(0, 10))
    made.close("completed")
    assert_holds(Run(tmp_path / "r")[NORMS], 10)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_runs_are_found_beside_what_is_none(tmp_path: Path, kind: Callable[[Path, Path], None]) -> None:
    run, outside = two_runs(tmp_path)
    (tmp_path / "third").mkdir()
    kind(tmp_path / "third/run.json", outside / "run.json")
    assert {run, outside} <= set(find_runs(tmp_path))
