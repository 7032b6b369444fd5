"""Standard output that goes on without a reader, as behind ``| head``: what nobody reads any more is dropped."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

__all__ = ["Patient", "be_patient"]


class Patient:
    """A text stream that does not end the command when its reader is gone: results must still be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Hand over what was written, or drop it."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def be_patient() -> None:
    """Make the standard output patient, once."""
    if sys.stdout is not None and not isinstance(sys.stdout, Patient):
        sys.stdout = Patient(sys.stdout)
