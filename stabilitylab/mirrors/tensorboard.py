"""TensorBoard: every series as scalars, events as text and as markers on a curve of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stabilitylab.errors import InputError

try:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise InputError("the mirror 'tensorboard' needs tensorboard: pip install 'stabilitylab[tensorboard]'") from error

__all__ = ["Mirror"]


class Mirror:
    """Event files in the folder ``tensorboard`` of the run; ``tensorboard --logdir runs`` shows them.

    The tag of a scalar is ``series/label``. An event of a kind is a text under ``events/kind`` and a marker, the
    value 1 at its step, under ``markers/kind``. A resumed run hides what lies at or after its first step; from step 0
    on, nothing of what was there before is kept. Importing this module fails where tensorboard is not installed.
    """

    def __init__(self, path: Path, first_step: int = 0) -> None:
        if first_step == 0:
            for old in (path / "tensorboard").glob("events.out.tfevents.*"):  # of an analysis made before
                old.unlink()
        self._writer = SummaryWriter(str(path / "tensorboard"), purge_step=first_step or None)

    def rows(self, series: str, labels: Sequence[str], steps: np.ndarray, values: np.ndarray) -> None:
        """Write one record a step, which holds all labels: far fewer records than scalars written one by one."""
        tags = [f"{series}/{label}" for label in labels]
        file = self._writer._get_file_writer()
        for step, row in zip(steps.tolist(), values.tolist(), strict=True):
            scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in zip(tags, row, strict=True)]
            file.add_summary(Summary(value=scalars), step)

    def event(self, step: int, kind: str, text: str) -> None:
        """Write the text, and the marker."""
        name = re.sub(r"\W+", "_", kind)
        self._writer.add_text(f"events/{name}", text, step)
        self._writer.add_scalar(f"markers/{name}", 1.0, step)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
