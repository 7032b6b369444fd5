"""Logs of others as runs: TensorBoard event files, W&B histories, and tables in CSV and Parquet."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from stabilitylab.errors import InputError
from stabilitylab.importing.assembly import Ends, assemble, out_of_step
from stabilitylab.importing.mapping import map_to, parse_maps
from stabilitylab.importing.plan import Plan, make_plan
from stabilitylab.importing.reading import read, refuse_two_runs
from stabilitylab.importing.sources import find_sources
from stabilitylab.importing.spool import Spool
from stabilitylab.run import RunWriter

__all__ = ["Plan", "import_run", "survey"]


def survey(
    sources: Sequence[str | Path], maps: Sequence[str] = (), step: str | None = None, layers: Sequence[str] = ()
) -> Plan:
    """Read logs and return what an import would make of them; nothing is written.

    Args:
        sources: files and folders of one run.
        maps: ``PATTERN=SERIES``: columns whose whole name matches the regular expression go to the series, with the
            label that the group ``label`` catches; an empty series leaves them out. They come before the defaults.
        step: the column of the steps in tables and histories, where it is not found by its name.
        layers: all layers in depth order, where the order that is found is not it.

    Raises:
        InputError: if a file cannot be read, a pattern matches nothing, or the layers are others.
    """
    patterns = parse_maps(maps)
    log = read(find_sources([Path(each) for each in sources]), step)
    refuse_two_runs(log)
    return make_plan(log, patterns, layers=layers)


def import_run(
    sources: Sequence[str | Path],
    out: str | Path,
    maps: Sequence[str] = (),
    step: str | None = None,
    layers: Sequence[str] = (),
) -> tuple[Plan, list[str]]:
    """Write the run that logs tell of; arguments as for `survey`.

    Memory holds some million values, and one row group of a Parquet table, whatever the length of the logs: values wait
    in a file in ``out``, which is removed, and the run stands there whole or not at all.

    Args:
        sources: files and folders of one run.
        out: the run folder; must not hold a run. It is left as it was if a log cannot be read, or the run not written.
        maps: see `survey`.
        step: see `survey`.
        layers: see `survey`.

    Returns:
        What became of the columns, and what must be said of it.

    Raises:
        InputError: if a file cannot be read, a pattern matches nothing, or the folder cannot be written.
    """
    patterns, out = parse_maps(maps), Path(out)
    if (out / "run.json").exists() or (out / "series").exists():
        raise InputError(f"{out} holds a run already; choose another folder")
    found = find_sources([Path(each) for each in sources])
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        waiting = Path(tempfile.mkdtemp(prefix=".importing-", dir=out))
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from error
    try:
        spool = Spool(waiting / "values.parquet")
        try:
            log = read(found, step, spool)
            refuse_two_runs(log)
        finally:
            spool.close()
        plan = make_plan(log, patterns, layers=layers)
        apart, ends = out_of_step(plan, spool)
        if apart:
            plan = make_plan(log, patterns, apart, layers)
            _, ends = out_of_step(plan, spool)
        try:
            notes = _write(plan, spool, ends, waiting / "run")
            for each in sorted(
                (waiting / "run").iterdir(), key=lambda path: path.name == "run.json"
            ):  # the header last
                os.replace(each, out / each.name)
        except OSError as error:
            raise InputError(f"{out} cannot be written: {error.strerror or error}") from error
        return plan, notes
    finally:
        shutil.rmtree(waiting)
        if made and not any(out.iterdir()):
            out.rmdir()


def _write(plan: Plan, spool: Spool, ends: dict[str, Ends], out: Path) -> list[str]:
    layers = plan.layers
    header = {}
    if layers is not None:
        header["layers"] = {"names": list(layers.names), "of": dict(layers.of), "first": layers.first}
    writer = RunWriter(out, header)
    try:
        notes = plan.notes() + assemble(plan, spool, ends, writer)
        files = [
            {"file": str(each.source.path), "kind": each.source.kind, "steps": each.facts.step}
            for each in plan.log.files
        ]
        maps = {name: map_to(name, "knn.accuracy") for name in plan.accuracies()}
        writer.update(imported={"files": files, "notes": notes, "left_out": plan.left_out, "accuracies": maps})
    except BaseException as error:
        writer.close("failed", str(error))
        raise
    writer.close("completed")
    return notes
