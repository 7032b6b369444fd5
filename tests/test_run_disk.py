"""Truth: a system that fails at every call in turn: what was on disk stays, and the same call works later."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from small_runs import HEADER, LABELS, NORMS, assert_holds, files, in_fresh_process, rows, writer

from stabilitylab.disk import atomic, parts
from stabilitylab.errors import InputError
from stabilitylab.run import Run, RunWriter

ACTS: dict[str, Callable[[RunWriter], None]] = {
    "write": lambda made: made.write(NORMS, *rows(50, 100)),
    "update": lambda made: made.update(disabled={"knn": {"step": 50}}),
    "close": lambda made: made.close("completed"),
}
CALLS = {"write": 3, "update": 3, "close": 6}
"""How often each syncs or renames: a file, its name and its folder, and on closing a merged part before the header."""


class Disk:
    """A disk that is full after some calls, until there is room again."""

    room = 10**9

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, self._limited(getattr(os, name)))

    def _limited(self, call: Callable[..., object]) -> Callable[..., object]:
        def limited(*given: object) -> object:
            self.room -= 1
            if self.room < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return call(*given)

        return limited


def two_parts(path: Path) -> RunWriter:
    made = writer(path)
    made.write(NORMS, *rows(0, 25))
    made.write(NORMS, *rows(25, 50))
    return made


def fails(act: Callable[[RunWriter], None], made: RunWriter) -> bool:
    try:
        act(made)
    except OSError:
        return True
    return False


def half_written(path: Path) -> list[str]:
    return [each.name for each in path.rglob("*") if atomic.TEMPORARY.fullmatch(each.name)]


@pytest.mark.parametrize(("act", "room"), [(act, room) for act in ACTS for room in range(CALLS[act] + 1)])
def test_on_a_full_disk_nothing_is_half_written_and_the_same_call_works_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str, room: int
) -> None:
    made = two_parts(tmp_path / "r")
    disk = Disk(monkeypatch)
    disk.room = room
    failed = fails(ACTS[act], made)
    assert failed == (room < CALLS[act])
    assert half_written(tmp_path / "r") == []
    assert_holds(Run(tmp_path / "r")[NORMS], 50 if failed or act != "write" else 100)
    if failed:
        assert fails(ACTS[act], made)
        with pytest.raises(InputError, match="is being written"):
            writer(tmp_path / "r", 50)
        disk.room = 10**9
        ACTS[act](made)
    disk.room = 10**9
    if act == "update":
        assert Run(tmp_path / "r").header["disabled"] == {"knn": {"step": 50}}
    made.close("completed")
    assert (Run(tmp_path / "r").status, len(files(tmp_path / "r/series" / NORMS))) == ("completed", 1)
    assert_holds(Run(tmp_path / "r")[NORMS], 100 if act == "write" else 50)
    writer(tmp_path / "r", 40).close("completed")


def test_rows_that_were_kept_may_be_written_in_other_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = two_parts(tmp_path / "r")
    disk = Disk(monkeypatch)
    for room in range(3):
        disk.room = room
        assert fails(ACTS["write"], made)
    disk.room = 10**9
    made.write(NORMS, *rows(50, 55))  # split otherwise
    made.write(NORMS, *rows(55, 130))
    assert_holds(Run(tmp_path / "r")[NORMS], 130)
    made.close("completed")
    assert_holds(Run(tmp_path / "r")[NORMS], 130)


def test_parts_are_merged_when_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = writer(tmp_path / "r")
    disk = Disk(monkeypatch)
    for first in range(0, 100, 2):
        disk.room = 3 if first < 80 else 10**9  # enough for a part, not for a merged one
        made.write(NORMS, *rows(first, first + 2))
    assert len(files(tmp_path / "r/series" / NORMS)) <= parts.MOST
    assert_holds(Run(tmp_path / "r")[NORMS], 100)


def test_a_header_that_is_no_json_spoils_nothing(tmp_path: Path) -> None:
    made = two_parts(tmp_path / "r")
    for wrong in ({"x": object()}, {"config": 3}, {"layers": None}):
        with pytest.raises(InputError):
            made.update(**wrong)
    with pytest.raises(InputError):
        made.declare("x", ["a"], unit=object())
    made.update(seed=3)
    made.close("completed")
    assert Run(tmp_path / "r").header["seed"] == 3


# ---- limits of the system


def _with_small_files(path: Path) -> None:
    made = two_parts(path)
    made.declare(NORMS, labels := [f"blocks.{index}.weight" for index in range(500)])
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, unlimited[1]))
    steps, values = np.arange(50, 60), np.ones((10, 500), "float32")
    acts: list[Callable[[RunWriter], None]] = [
        lambda made: made.write(NORMS, steps, values),
        lambda made: made.update(seed=1),
        lambda made: made.close("completed"),
    ]
    for act in acts:
        assert fails(act, made)
        assert half_written(path) == []
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    for act in acts:
        act(made)
    run = Run(path)
    assert (run.status, run.header["seed"], len(run[NORMS])) == ("completed", 1, 60)
    assert run.about(NORMS)["labels"] == [*labels, *LABELS]


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    in_fresh_process(_with_small_files, tmp_path / "r")


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        made = two_parts(disk / "r")
        with suppress(OSError), open(disk / "other", "wb") as other:
            while True:
                other.write(bytes(512))
                other.flush()
        assert all(fails(act, made) for act in ACTS.values())
        assert half_written(disk / "r") == []
        assert_holds(Run(disk / "r")[NORMS], 50)
        (disk / "other").unlink()
        for act in ACTS.values():
            act(made)
        assert Run(disk / "r").status == "completed"
        assert_holds(Run(disk / "r")[NORMS], 100)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_became_unwritable(tmp_path: Path) -> None:
    made = two_parts(tmp_path / "r")
    folders = [tmp_path / "r/series" / NORMS, tmp_path / "r"]
    for folder in folders:
        folder.chmod(0o500)
    assert all(fails(act, made) for act in ACTS.values())
    for folder in folders:
        folder.chmod(0o700)
    for act in ACTS.values():
        act(made)
    assert_holds(Run(tmp_path / "r")[NORMS], 100)


# ---- a folder that is removed while it is written


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("name", [".", "r", "r/series", f"r/series/{NORMS}", "r/run.json", "r/.writer.lock"])
def test_what_was_removed_is_made_again(tmp_path: Path, act: str, name: str) -> None:
    runs = tmp_path / "runs"
    made = two_parts(runs / "r")
    remove(runs / name)
    ACTS[act](made)
    for other in ACTS:
        if act not in (other, "close"):
            ACTS[other](made)
    left = 0 if act == "close" else 50
    kept = 0 if name in (".", "r", "r/series", f"r/series/{NORMS}") else 50
    run = Run(runs / "r")
    assert (run.status, run.config, run.about(NORMS)["unit"]) == ("completed", HEADER["config"], "gradient")
    assert len(run[NORMS]) == kept + left
    assert run[NORMS].equals(run[NORMS].loc[50 - kept :])
    writer(runs / "r", 200).close("completed")


def test_a_folder_that_is_made_again_is_locked_again(tmp_path: Path) -> None:
    made = two_parts(tmp_path / "r")
    shutil.rmtree(tmp_path / "r")
    made.write(NORMS, *rows(50, 60))
    with pytest.raises(InputError, match="is being written"):
        writer(tmp_path / "r", 60)
    made.close("completed")
    assert Run(tmp_path / "r")[NORMS].index.tolist() == list(range(50, 60))


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("name", ["runs", "runs/r", "runs/r/series", f"runs/r/series/{NORMS}"])
def test_a_file_in_place_of_a_folder_fails_until_it_is_gone(tmp_path: Path, act: str, name: str) -> None:
    made = two_parts(tmp_path / "runs/r")
    shutil.rmtree(tmp_path / name)
    (tmp_path / name).write_text("no folder")
    if act == "write" or "series" not in name:
        assert fails(ACTS[act], made)
        assert fails(ACTS[act], made)
    (tmp_path / name).unlink()
    ACTS[act](made)
    made.close("completed")
    assert len(Run(tmp_path / "runs/r")[NORMS]) == (50 if act == "write" else 0)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("act", ACTS)
def test_another_run_in_the_place_of_a_removed_one_is_left_alone(tmp_path: Path, act: str, ended: bool) -> None:
    made = two_parts(tmp_path / "r")
    shutil.rmtree(tmp_path / "r")
    other = writer(tmp_path / "r")
    other.update(config={"mine": True})
    other.write(NORMS, *rows(0, 30))
    if ended:
        other.close("completed")
    assert fails(ACTS[act], made)
    assert_holds(Run(tmp_path / "r")[NORMS], 30)
    assert Run(tmp_path / "r").config == {"mine": True}
    other.close("completed")
    writer(tmp_path / "r", 20).close("completed")


# ---- what killed writers leave


def test_temporary_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    two_parts(tmp_path / "r").close("interrupted")
    folder = tmp_path / "r/series" / NORMS
    left = [tmp_path / "r/.run.json.1.tmp", folder / ".00000050-00000099.parquet.77.tmp"]
    others = [tmp_path / "r/notes.tmp", tmp_path / "r/checkpoints/.00000050.tmp", folder / ".hidden"]
    (tmp_path / "r/checkpoints").mkdir()
    for path in [*left, *others]:
        path.write_bytes(b"half")
    writer(tmp_path / "r", 50).close("completed")
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)
