"""What was measured and is not on disk yet: rows on the device until a flush, then arrays on the host."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stabilitylab.errors import InputError
from stabilitylab.run import RunWriter

__all__ = ["Backlog", "Block", "Rows"]


class Block(NamedTuple):
    """Rows of one series on the host."""

    series: str
    labels: tuple[str, ...]
    steps: np.ndarray
    """int64, increasing, shape (T,)."""
    values: np.ndarray
    """Shape (T, number of labels)."""


class Rows:
    """Rows as they were measured, on the device; emptied by every flush, so that nothing grows with the steps."""

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[tuple[str, ...], list[tuple[int, Tensor | Sequence[float]]]]]] = {}

    def add(self, series: str, labels: Sequence[str], step: int, values: Tensor | Sequence[float]) -> None:
        """Keep one row: a tensor as it is, which must be nobody else's."""
        parts = self._rows.setdefault(series, [])
        if not parts or parts[-1][0] != tuple(labels):
            parts.append((tuple(labels), []))
        parts[-1][1].append((step, values))

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take on the device."""
        rows = (values for parts in self._rows.values() for _, rows in parts for _, values in rows)
        return sum(each.numel() * each.element_size() for each in rows if isinstance(each, Tensor))

    def take(self) -> list[Block]:
        """Return all rows on the host, and forget them: one transfer, a block wherever the labels change."""
        parts = [(series, *part) for series, of in self._rows.items() for part in of]
        self._rows = {}
        stacked = [_stack([value for _, value in rows]) for *_, rows in parts]
        on_host = _transfer({at: values for at, values in enumerate(stacked) if isinstance(values, Tensor)})
        blocks = []
        for at, ((series, labels, rows), values) in enumerate(zip(parts, stacked, strict=True)):
            steps = np.asarray([step for step, _ in rows], dtype="int64")
            blocks.append(Block(series, labels, steps, on_host[at] if isinstance(values, Tensor) else values))
        return blocks


def _stack(values: list[Tensor | Sequence[float]]) -> Tensor | np.ndarray:
    """Return rows as one array (T, number of labels): on the device if any row is there, exact where types differ."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not tensors:
        return np.asarray(values, dtype="float64")
    if len(tensors) == len(values) and len({(each.dtype, each.device) for each in tensors}) == 1:
        return torch.stack(tensors)
    device = next((each.device for each in tensors if each.device.type != "cpu"), tensors[0].device)
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.stack([torch.as_tensor(value).to(device, dtype) for value in values])


def _transfer(tensors: Mapping[Any, Tensor]) -> dict[Any, np.ndarray]:
    """Copy all tensors to the host at once: the only place that waits for the device, once a flush."""
    if not tensors:
        return {}
    # numpy has no bfloat16; float32 holds it exactly
    tensors = {name: each.float() if each.dtype == torch.bfloat16 else each for name, each in tensors.items()}
    here = {name: tensor.numpy() for name, tensor in tensors.items() if tensor.device.type == "cpu"}
    there = {name: tensor for name, tensor in tensors.items() if name not in here}
    if not there:
        return here
    # float64 holds float32, bfloat16 and small integers exactly; Apple's devices have no float64
    device = next(iter(there.values())).device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    flat = torch.cat([tensor.to(device, dtype, non_blocking=True).flatten() for tensor in there.values()]).cpu()
    pieces = flat.split([tensor.numel() for tensor in there.values()])
    return here | {
        name: piece.reshape(tensor.shape).to(tensor.dtype).numpy()
        for (name, tensor), piece in zip(there.items(), pieces, strict=True)
    }


class Backlog:
    """Blocks on their way to disk: kept in memory while the disk refuses them, up to a limit.

    Nothing that the disk does ends a training: the first refusal is told in a warning, every flush tries again, the
    oldest blocks are given up when the limit is reached, and the run says what is missing.

    Args:
        writer: of the run.
        about: series name to what ``run.json`` says of it.
        limit: bytes that may wait.
    """

    def __init__(self, writer: RunWriter, about: Mapping[str, Mapping[str, Any]], limit: int) -> None:
        self.lost: list[dict[str, Any]] = []
        """What will never be on disk: series, first and last step, number of rows, and why."""
        self._writer, self._about, self._limit = writer, about, limit
        self._waiting: list[Block] = []
        self._outages: list[dict[str, Any]] = []
        self._on_disk: dict[str, list[int]] = {}
        self._declared: dict[str, tuple[str, ...]] = {}
        self._warned = False

    @property
    def nbytes(self) -> int:
        """Bytes that wait for the disk."""
        return sum(block.values.nbytes + block.steps.nbytes for block in self._waiting)

    @property
    def _failing(self) -> bool:
        return bool(self._outages) and "until" not in self._outages[-1]

    def write(self, blocks: Sequence[Block], step: int) -> None:
        """Write what waits and the new blocks, in order, as far as the disk allows; ``step`` is the present one."""
        self._waiting.extend(blocks)
        try:
            self._notice_removal(step)
            with suppress(InputError):  # given up where it is written
                for block in self._waiting:
                    if block.series not in self._declared:
                        self._declare(block)
            while self._waiting:
                self._write(self._waiting[0])
                self._waiting.pop(0)
            if self._failing:
                self._outages[-1]["until"] = step
                self._tell()
        except OSError as error:
            self._refused(error, step)

    def _write(self, block: Block) -> None:
        try:
            self._declare(block)
            self._writer.write(block.series, block.steps, block.values)
        except OSError:
            raise
        except Exception as error:  # a block that can never be written must not hold up the others
            self._give_up(block, f"{type(error).__name__}: {error}")
            self._tell()
            return
        span = self._on_disk.setdefault(block.series, [int(block.steps[0]), 0, 0])
        span[1] = int(block.steps[-1])
        span[2] += len(block.steps)

    def _declare(self, block: Block) -> None:
        """Announce a series, with the columns that it has now; the next write puts that into ``run.json``."""
        if self._declared.get(block.series) != block.labels:
            self._writer.declare(block.series, block.labels, **self._about.get(block.series, {}))
            self._declared[block.series] = block.labels

    def _notice_removal(self, step: int) -> None:
        if (self._writer.path / "run.json").exists():
            return
        for series, (first, last, rows) in self._on_disk.items():
            self._lose(series, first, last, rows, "the run folder was removed")
        self._on_disk.clear()
        if not self._failing:
            self._outages.append({"step": step, "reason": "the run folder was removed"})
            self._warn(f"{self._writer.path} was removed; recording starts again there")

    def _refused(self, error: OSError, step: int) -> None:
        reason = error.strerror or str(error) or type(error).__name__
        if not self._failing:
            self._outages.append({"step": step, "reason": reason})
        self._warn(
            f"{self._writer.path} cannot be written ({reason}); training goes on, and up to {self._limit:,} bytes "
            "of what is recorded wait in memory"
        )
        while self._waiting and self.nbytes > self._limit:
            self._give_up(self._waiting.pop(0), reason)

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(message, stacklevel=6)

    def _give_up(self, block: Block, reason: str) -> None:
        self._lose(block.series, int(block.steps[0]), int(block.steps[-1]), len(block.steps), reason)

    def _lose(self, series: str, first: int, last: int, rows: int, reason: str) -> None:
        for each in self.lost:
            if each["series"] == series and each["reason"] == reason:
                each.update(last_step=last, rows=each["rows"] + rows)
                return
        self.lost.append({"series": series, "first_step": first, "last_step": last, "rows": rows, "reason": reason})

    def say(self, step: int, **fields: Any) -> None:
        """Set fields of ``run.json``, now or, if the disk refuses, with the next write that succeeds."""
        try:
            self._writer.update(**fields)
        except OSError as error:
            self._refused(error, step)

    def _tell(self) -> None:
        """Say in ``run.json`` when the disk refused, and what is missing."""
        if self._outages or self.lost:
            self._writer.update(outages=self._outages, lost=self.lost)

    def close(self, status: str, message: str, step: int) -> None:
        """Close the run, after a last try to write what waits; what is lost is told in a warning, and in the run."""
        self.write([], step)
        if self._waiting:
            reason = self._outages[-1]["reason"]
            for block in self._waiting:
                self._give_up(block, reason)
            self._waiting = []
        try:
            self._tell()
            self._writer.close(status, message, last_step=step - 1)
        except OSError as error:
            reason = error.strerror or str(error)
            warnings.warn(f"the end of {self._writer.path} could not be written: {reason}", stacklevel=4)
        if self.lost:
            warnings.warn(f"not all of {self._writer.path} is on disk: {'; '.join(self._sentences())}", stacklevel=4)

    def _sentences(self) -> Iterator[str]:
        spans: dict[tuple[int, int, str], list[str]] = {}
        for each in self.lost:
            spans.setdefault((each["first_step"], each["last_step"], each["reason"]), []).append(each["series"])
        for (first, last, reason), series in spans.items():
            yield f"steps {first:,} to {last:,} of {', '.join(series)} are lost ({reason})"
