"""Truth: a list of sizes merged by hand, and rows that follow from their step however they were flushed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from small_runs import LABELS, NORMS, assert_holds, files, rows, writer

from stabilitylab.disk import parts
from stabilitylab.run import Run

STEPS = 1_000_000
RNG = np.random.default_rng(0)
FLUSHES = {
    "every 50 steps": [50] * (STEPS // 50),
    "every step": [1] * 100_000,
    "by time": RNG.geometric(1 / 50, STEPS // 50).tolist(),
    "by time, with pauses": np.ceil(10 ** RNG.uniform(0, 3, 6000)).astype(int).tolist(),
    "long and short": [1, 200] * 5000,
    "longer and longer": list(range(1, 1400)),
    "shorter and shorter": list(range(1400, 0, -1)),
    "long, then short": [1000] * 500 + [1] * 20_000,
}


def merged(flushes: Iterable[int]) -> tuple[int, float]:
    """Return the largest number of parts that there ever was, and how often a row was written."""
    sizes: list[int] = []
    most = written = total = 0
    for size in flushes:
        sizes.append(size)
        total += size
        written += size
        most = max(most, len(sizes))
        while len(sizes) > parts.MOST:
            number = parts.newest_to_merge(sizes)
            sizes[-number:] = [sum(sizes[-number:])]
            written += sizes[-1]
    return most, written / total


@pytest.mark.parametrize("name", FLUSHES)
def test_a_million_steps_are_few_files_and_few_rewrites(name: str) -> None:
    most, times = merged(FLUSHES[name])
    assert most <= parts.MOST + 1
    assert times < 6


def test_what_stays_doubles_in_size() -> None:
    assert parts.newest_to_merge([8, 4, 2, 1]) == 2
    assert parts.newest_to_merge([20, 10, 2, 2, 1]) == 3
    assert parts.newest_to_merge([1, 1, 1, 1]) == 4
    assert parts.newest_to_merge([100, 1, 1]) == 2


def test_there_are_few_files_at_every_moment(tmp_path: Path) -> None:
    folder = tmp_path / "r/series" / NORMS
    made, step, most = writer(tmp_path / "r"), 0, 0
    for flush in range(300):
        if flush % 70 == 69:  # killed: what it holds is let go
            del made
            step -= 5
            made = writer(tmp_path / "r", step)
        stop = step + int(RNG.geometric(1 / 8))
        made.write(NORMS, *rows(step, stop))
        step = stop
        most = max(most, len(files(folder)))
    assert most == parts.MOST
    assert_holds(Run(tmp_path / "r")[NORMS], step)
    made.close("completed")
    assert files(folder) == [f"00000000-{step - 1:08d}.parquet"]
    assert_holds(Run(tmp_path / "r")[NORMS], step)


def test_merged_rows_lie_in_few_row_groups(tmp_path: Path) -> None:
    made = writer(tmp_path / "r")
    made.write(NORMS, *rows(0, 9000))
    for first in range(9000, 20_000, 1000):
        made.write(NORMS, *rows(first, first + 1000))
    made.close("completed")
    (part,) = (tmp_path / "r/series" / NORMS).iterdir()
    assert pq.ParquetFile(part).num_row_groups <= 20_000 // parts.ROWS + 1
    assert_holds(pd.read_parquet(part), 20_000)


def test_a_damaged_part_does_not_stop_the_merging_of_what_follows(tmp_path: Path) -> None:
    folder = tmp_path / "r/series" / NORMS
    made = writer(tmp_path / "r")
    for first in range(0, 200, 2):
        made.write(NORMS, *rows(first, first + 2))
        if first == 20:
            damaged = folder / "00000010-00000011.parquet"
            damaged.write_bytes(damaged.read_bytes()[:-9])
    assert len(files(folder)) <= 2 * parts.MOST + 1
    run = Run(tmp_path / "r", damaged="skip")
    assert sorted(set(range(200)) - set(run[NORMS].index)) == [10, 11]
    made.close("completed")
    assert damaged.name in files(folder)


@pytest.mark.parametrize("sound", [True, False])
def test_what_a_wider_part_replaces_is_removed_only_if_that_one_is_sound(tmp_path: Path, sound: bool) -> None:
    made = writer(tmp_path / "r")
    made.write(NORMS, *rows(0, 50))
    folder = tmp_path / "r/series" / NORMS
    first = (folder / "00000000-00000049.parquet").read_bytes()
    made.write(NORMS, *rows(50, 100))
    parts.merge(folder, parts.list_parts(folder))
    (folder / "00000000-00000049.parquet").write_bytes(first)  # as after a kill between merging and removing
    wider = folder / "00000000-00000099.parquet"
    if not sound:
        wider.write_bytes(wider.read_bytes()[:-9])
    made.write(NORMS, *rows(100, 120))
    kept = ["00000000-00000099.parquet", "00000100-00000119.parquet"]
    assert files(folder) == (kept if sound else ["00000000-00000049.parquet", *kept])
    frame = Run(tmp_path / "r", damaged="skip")[NORMS]
    assert len(frame) == (120 if sound else 70)


def test_pages_carry_checksums_and_null_means_not_recorded(tmp_path: Path) -> None:
    made = writer(tmp_path / "r")
    made.write(NORMS, *rows(0, 20))
    made.declare(NORMS, ["b.w"])
    made.write(NORMS, np.arange(20, 25), np.full((5, 1), np.nan, "float32"))
    made.close("completed")
    (part,) = (tmp_path / "r/series" / NORMS).iterdir()
    table = pq.read_table(part)
    assert [table.column(label).null_count for label in LABELS] == [5, 0]
