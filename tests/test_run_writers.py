"""Truth: the rows that one writer wrote; a second writer and a forked child must not change a byte of them."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from small_runs import FRESH, HEADER, NORMS, assert_holds, in_fresh_process, rows, writer

from stabilitylab.errors import InputError
from stabilitylab.run import Run, RunWriter

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def is_held(path: Path) -> bool:
    try:
        writer(path, 1000).close("looked")
    except InputError as error:
        if "is being written by another process" in str(error):
            return True
        raise
    return False


def in_child(act: Callable[[], object]) -> None:
    """Fork, act in the child, and let it end as a process does, finalizers and all."""
    child = os.fork()
    if child == 0:
        try:
            act()
            gc.collect()
        except Exception:
            traceback.print_exc()
            os._exit(1)
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0


def write_in_child(made: RunWriter) -> None:
    made.declare("child", ["a"])
    made.write("child", np.arange(5), np.ones((5, 1)))
    made.write(NORMS, *rows(10, 20))
    made.update(config={"written by": "the child"})
    made.close("failed")


# ---- two writers


def test_the_second_writer_gets_a_clear_error(tmp_path: Path) -> None:
    made = writer(tmp_path / "r")
    made.write(NORMS, *rows(0, 10))
    content = (tmp_path / "r/run.json").read_bytes()
    for first_step, message in ((0, "holds a run already"), (3, "is being written by another process")):
        with pytest.raises(InputError, match=message):
            writer(tmp_path / "r", first_step)
    in_fresh_process(_assert_held, tmp_path / "r")
    assert (tmp_path / "r/run.json").read_bytes() == content
    assert_holds(Run(tmp_path / "r")[NORMS], 10)
    made.write(NORMS, *rows(10, 20))
    made.close("completed")
    writer(tmp_path / "r", 3).close("completed")


def _assert_held(path: Path) -> None:
    assert is_held(path)


def test_a_writer_that_fails_to_begin_holds_nothing(tmp_path: Path) -> None:
    writer(tmp_path / "r").close("completed")
    for wrong in ({"config": []}, {"layers": {}}, {"config": {"x": object()}}):
        for path, first_step in ((tmp_path / "r", 5), (tmp_path / "new", 0)):
            with pytest.raises(InputError):
                RunWriter(path, wrong, first_step)
    assert Run(tmp_path / "r").config == HEADER["config"]
    assert not is_held(tmp_path / "r")
    writer(tmp_path / "new").close("completed")


def test_a_closed_writer_writes_no_more(tmp_path: Path) -> None:
    made = writer(tmp_path / "r")
    made.close("completed")
    made.close("failed")
    for write in (lambda: made.write(NORMS, *rows(0, 5)), lambda: made.update(x=1), lambda: made.declare("x", [])):
        with pytest.raises(InputError, match="is closed"):
            write()
    assert Run(tmp_path / "r").status == "completed"


def test_where_no_run_can_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "leftover/series").mkdir(parents=True)
    for name, message in (
        ("file", "cannot be written"),
        ("file/r", "cannot be written"),
        ("leftover", "holds series but no run.json"),
    ):
        with pytest.raises(InputError, match=message):
            writer(tmp_path / name)
    with pytest.raises(InputError, match="first step is -1"):
        writer(tmp_path / "r", -1)
    assert not (tmp_path / "r").exists()


# ---- forked children


def _children_do_nothing(path: Path) -> None:
    made = writer(path)
    made.write(NORMS, *rows(0, 10))
    content = (path / "run.json").read_bytes()
    in_child(lambda: write_in_child(made))
    in_child(lambda: in_child(lambda: write_in_child(made)))  # nor a grandchild
    in_child(lambda: _assert_held(path))
    assert (path / "run.json").read_bytes() == content
    assert os.listdir(path / "series") == [NORMS]
    assert is_held(path)
    made.write(NORMS, *rows(10, 30))
    made.close("completed")
    in_child(lambda: write_in_child(made))
    assert_holds(Run(path)[NORMS], 30)
    assert Run(path).status == "completed"


def test_a_forked_child_neither_writes_nor_releases_the_run(tmp_path: Path) -> None:
    in_fresh_process(_children_do_nothing, tmp_path / "r")


def _lets_go_in_child(path: Path) -> None:
    made = [writer(path)]
    in_child(made.clear)
    assert is_held(path)
    descriptor = made[0]._lock._descriptor
    reader, sender = os.pipe()

    def reuse() -> None:
        """Take the number that the descriptor of the lock had, and see that letting go does not close it."""
        os.dup2(sender, descriptor)
        made.clear()
        gc.collect()
        os.write(descriptor, b"open")

    in_child(reuse)
    assert os.read(reader, 4) == b"open"
    assert is_held(path)


def test_a_child_that_lets_the_writer_go_does_not_release_the_run(tmp_path: Path) -> None:
    in_fresh_process(_lets_go_in_child, tmp_path / "r")


def _closes_beside_children(path: Path) -> None:
    for attempt in range(20):
        made = writer(path, attempt and 1000)
        child = os.fork()
        if child == 0:
            time.sleep(60)
        made.close("completed")
        assert not is_held(path)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_closed_run_is_free_whatever_children_live(tmp_path: Path) -> None:
    in_fresh_process(_closes_beside_children, tmp_path / "r")


def _fork_and_wait(path: Path, answers: Connection) -> None:
    made = writer(path)
    made.write(NORMS, *rows(0, 10))
    if os.fork() == 0:
        answers.send(os.getpid())  # from the child itself: it has then left what it does right after it was forked
    time.sleep(60)


def test_an_orphan_does_not_hold_the_run(tmp_path: Path) -> None:
    answers, sender = FRESH.Pipe(duplex=False)
    process = FRESH.Process(target=_fork_and_wait, args=(tmp_path / "r", sender))
    process.start()
    orphan = answers.recv()
    assert is_held(tmp_path / "r")
    process.kill()
    process.join()
    try:
        os.kill(orphan, 0)  # it lives
        again = writer(tmp_path / "r", 5)
        again.write(NORMS, *rows(5, 20))
        again.close("completed")
    finally:
        os.kill(orphan, signal.SIGKILL)
    assert_holds(Run(tmp_path / "r")[NORMS], 20)
    assert [each["status"] for each in Run(tmp_path / "r").header["attempts"]] == ["killed", "completed"]


# ---- data loaders and spawned processes


class Images:
    """A data set that somebody gave the writer to, as an attribute of something else."""

    def __init__(self, made: RunWriter) -> None:
        self.made = made

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        write_in_child(self.made)
        return index


def _load(path: Path) -> None:
    from torch.utils.data import DataLoader

    made = writer(path)
    for epoch in range(2):
        loader = DataLoader(Images(made), batch_size=2, num_workers=2, multiprocessing_context="fork")
        assert sum(int(batch.sum()) for batch in loader) == 28
        made.write(NORMS, *rows(10 * epoch, 10 * epoch + 10))
    assert is_held(path)
    made.close("completed")
    assert (Run(path).status, Run(path).series, Run(path).config) == ("completed", (NORMS,), HEADER["config"])
    assert_holds(Run(path)[NORMS], 20)


def test_workers_of_a_data_loader_do_nothing_to_the_run(tmp_path: Path) -> None:
    in_fresh_process(_load, tmp_path / "r")


def test_a_writer_is_not_sent_to_another_process(tmp_path: Path) -> None:
    made = writer(tmp_path / "r")
    spawned = FRESH.Process(target=write_in_child, args=(made,))
    for send in (lambda: pickle.dumps(made), lambda: pickle.dumps([Images(made)]), spawned.start):
        with pytest.raises(InputError, match="make the recorder in the training process only"):
            send()
    for duplicate in (copy.copy, copy.deepcopy):
        with pytest.raises(InputError, match="cannot be copied"):
            duplicate(made)
    made.write(NORMS, *rows(0, 10))
    made.close("completed")
    assert_holds(Run(tmp_path / "r")[NORMS], 10)
