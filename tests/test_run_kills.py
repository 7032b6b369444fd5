"""Truth: the steps that the writer said it had flushed, before it was killed; each value tells its step and attempt."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from small_runs import FRESH, HEADER, NORMS, files

from stabilitylab.disk import parts
from stabilitylab.run import Run, RunWriter

KILLS = 100
ROWS = 3


def _write(path: Path, first: int, attempt: int, flushes: int, said: Connection) -> None:
    """Continue a run, say what is flushed as soon as it is, close it if it comes to that, and wait for the kill."""
    parts.MOST = 4  # so that kills fall into merging, too
    said.send("beginning")
    made = RunWriter(path, HEADER, first)
    said.send(first)
    made.declare(NORMS, ["value", "attempt"])
    for start in range(first, first + ROWS * flushes, ROWS):
        steps = np.arange(start, start + ROWS)
        made.write(NORMS, steps, np.stack([np.sin(steps), np.full(ROWS, attempt)], axis=1))
        said.send(start + ROWS)
    said.send("closing")
    made.close("completed")
    said.send("closed")
    time.sleep(60)


def killed(path: Path, first: int, attempt: int, rng: np.random.Generator) -> list[str | int]:
    """Kill a writer at a random moment after something that it says, and return all that it said."""
    flushes = int(rng.integers(1, 30))
    heard, said = FRESH.Pipe(duplex=False)
    process = FRESH.Process(target=_write, args=(path, first, attempt, flushes, said))
    process.start()
    said.close()
    lines = [heard.recv()]
    for _ in range(int(rng.choice([0, rng.integers(1, flushes + 1), flushes + 2]))):
        while not heard.poll():
            whole(path)  # a reader beside the writer
        lines.append(heard.recv())
    until = time.monotonic() + float(rng.choice([0, rng.uniform(0, 0.015)]))
    while time.monotonic() < until:
        whole(path)
    time.sleep(float(rng.uniform(0, 0.003)))
    process.kill()
    process.join()
    with suppress(EOFError):
        while True:
            lines.append(heard.recv())
    return lines


def whole(path: Path) -> np.ndarray:
    """Return the attempt that wrote each step, after checking that there is no gap and no torn row."""
    frame = Run(path)[NORMS]
    steps = np.arange(len(frame))
    assert np.array_equal(frame.index, steps)
    assert np.array_equal(frame["value"], np.sin(steps))
    return frame["attempt"].to_numpy()


def test_a_run_is_running_until_its_writer_ends_or_is_killed(tmp_path: Path) -> None:
    heard, said = FRESH.Pipe(duplex=False)
    process = FRESH.Process(target=_write, args=(tmp_path / "killed", 0, 0, 2, said))
    process.start()
    while heard.recv() != 2 * ROWS:
        pass
    early = Run(tmp_path / "killed")
    assert early.status in ("running", "completed")  # it closes as soon as it is told
    while heard.recv() != "closed":
        pass
    assert early.status == Run(tmp_path / "killed").status == "completed"  # although its process lives
    process.kill()
    process.join()
    made = RunWriter(tmp_path / "own", HEADER)
    run = Run(tmp_path / "own")
    assert run.status == "running"
    made.header["attempts"][-1]["host"] = "another machine"
    made.update()
    made._lock.release()  # as the end of the process does
    assert run.status == "killed"
    assert Run(tmp_path / "own").status == "running"  # nothing is known of another machine's processes


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing_that_was_flushed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "r"
    made = RunWriter(path, HEADER)
    made.declare(NORMS, ["value", "attempt"])
    made.write(NORMS, np.arange(1), np.zeros((1, 2)))  # the only step that no attempt removes
    made.close("interrupted")
    before = np.zeros(1)  # the attempt that wrote each step
    moments = Counter[str]()
    longest = 0
    for attempt in range(1, KILLS + 1):
        first = int(rng.integers(1, len(before) + 1))
        lines = killed(path, first, attempt, rng)
        flushed = [line for line in lines if isinstance(line, int)]
        after = whole(path)
        if flushed:
            assert flushed[-1] <= len(after) <= flushed[-1] + ROWS
            assert np.array_equal(after[:first], before[:first])
            assert np.all(after[first:] == attempt)
        else:  # what lies at or after the first step is there yet, or not
            assert first <= len(after) <= len(before)
            assert np.array_equal(after, before[: len(after)])
        moments["writing" if isinstance(lines[-1], int) else lines[-1]] += 1
        longest = max(longest, len(files(path / "series" / NORMS)))
        before = after
    assert moments.keys() == {"beginning", "writing", "closing", "closed"}, moments
    assert longest <= 4 + 3, "parts, a merged one, one that is being written, and what the kill before left"
