"""Many processes: who writes, who measures, and what they compare without ever waiting for each other."""

from __future__ import annotations

from pathlib import Path

import torch

from stabilitylab.errors import InputError
from stabilitylab.recording.mistakes import Verdict, compare_ranks

__all__ = ["World", "world_size"]


def world_size() -> int:
    """Return the number of processes of the default process group, 1 without one."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


class World:
    """This process among those that train together.

    Args:
        path: the run folder, whose name tells apart what is exchanged for several runs.
        first_step: of this attempt.
        sharded: whether each measurement needs every rank.
    """

    def __init__(self, path: str | Path, first_step: int, sharded: bool) -> None:
        self.size = world_size()
        self.rank = torch.distributed.get_rank() if self.size > 1 else 0
        self.writes = self.rank == 0
        self.measures = self.writes or sharded
        self._sharded = sharded
        self._key = f"stabilitylab/{path}/{first_step}"

    def agree(self, probes: list[str]) -> None:
        """Fail on all ranks if they would measure different things, and wait for each other in vain.

        Raises:
            InputError: if a rank has other probes.
        """
        if not (self._sharded and self.size > 1):
            return
        all_probes: list[list[str]] = [[] for _ in range(self.size)]
        torch.distributed.all_gather_object(all_probes, probes)
        for rank, each in enumerate(all_probes):
            if each != all_probes[0]:
                raise InputError(
                    f"with sharded parameters every rank must measure alike: rank 0 has {', '.join(all_probes[0])}, "
                    f"rank {rank} has {', '.join(each) or 'no probe'}; give each the same held_out, inputs and probes"
                )

    def post(self, summary: str) -> None:
        """Leave what rank 0 compares where it can find it."""
        if self.size > 1:
            _store().set(f"{self._key}/{self.rank}", summary)

    def compare(self, own: str) -> Verdict | None:
        """Return the mistake between ranks, or None if there is none; never waits.

        Raises:
            LookupError: if not every rank has posted its summary yet.
        """
        keys = {rank: f"{self._key}/{rank}" for rank in range(1, self.size)}
        if not keys:
            return None
        store = _store()
        if not store.check(list(keys.values())):
            raise LookupError
        return compare_ranks(own, {rank: store.get(key).decode() for rank, key in keys.items()})


def _store() -> torch.distributed.Store:
    """Return the key-value store of the default process group: unlike a collective it cannot hang on a missing rank."""
    return torch.distributed.distributed_c10d._get_default_store()
