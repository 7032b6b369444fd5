"""The mistakes that a recording can make, named from what was recorded and what the optimizer used."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

__all__ = ["Seen", "Verdict", "compare_ranks", "judge"]

TOLERANCE = 2e-3
"""Norms that differ by less than this part are the same: half precision, and another order of summation."""

SAME = 2e-5
"""Relative difference of two norms that were clipped to the same limit, more than torch's own 1e-6 over the norm."""

TINY = 1e-30
"""Norms below it are zero."""

OVERFLOW = 1e19
"""Norms beyond it are infinite where squares are summed in single precision."""

LIKELY_SCALE = 16.0
"""Every gradient larger than the optimizer's by one power of two from here on: a scale, not a clip coefficient."""


class Verdict(NamedTuple):
    """``passed``, ``not checked``, or the name of the mistake, and a sentence that says what to do about it."""

    mistake: str
    sentence: str


@dataclass(frozen=True)
class Seen:
    """What one call of the recorder saw, and the optimizer after it; norms per tensor, float64."""

    recorded: np.ndarray | None
    """Norms as the recorder has them; None if there were no gradients, or nothing records them."""
    largest: np.ndarray | None
    """Largest entries as the recorder has them."""
    trusted: np.ndarray
    """Norms of the whole gradients at the same moment, computed one at a time in float64."""
    used: np.ndarray | None = None
    """The same at the next step of the optimizer; None if there was none before the next call."""
    updates: int = 0
    """Steps of the optimizer before the next call."""
    scaler: float = 1.0
    """The scale of the gradient scaler that made the optimizer's step; 1 without one."""

    @property
    def factors(self) -> np.ndarray:
        """How many times larger the gradients were than those that the optimizer used, where both are there."""
        assert self.used is not None
        there = (self.trusted > TINY) & (self.used > TINY)
        return self.trusted[there] / self.used[there]


class Case(NamedTuple):
    """What the rules look at."""

    seen: Sequence[Seen]
    """Calls with finite gradients, in order."""
    compared: Sequence[Seen]
    """Those after which the optimizer made a step, with finite gradients."""
    many_ranks: bool


Rule = tuple[str, str] | None


def judge(seen: Sequence[Seen], many_ranks: bool = False) -> Verdict:
    """Return the verdict over what was seen by one rank.

    Args:
        seen: calls of the recorder, in order.
        many_ranks: whether gradients have to be reduced over ranks.
    """
    empty = [each for each in seen if not each.trusted.any() and each.used is not None and each.used.any()]
    if len(empty) > len(seen) / 2:
        return Verdict(
            "no gradients",
            "There were no gradients when recorder.step was called: call it after backward and before zero_grad.",
        )
    finite = [each for each in seen if np.isfinite(each.trusted).all()]
    compared = [each for each in finite if each.used is not None and np.isfinite(each.used).all()]
    if compared and not any(np.any(each.used) or np.any(each.trusted) for each in compared):
        return Verdict(
            "no gradients",
            "All gradients were zero or missing, when recorder.step was called and in the steps of the optimizer: "
            "weights that are updated during the backward pass, or by functions without .grad, leave none to record.",
        )
    if not compared:
        return Verdict("not checked", "The self-check saw no step of the optimizer with finite gradients.")
    case = Case(finite, compared, many_ranks)
    for rule in (_wrong, _too_often, _late, _scaled, _changed, _clipped):
        found = rule(case)
        if found:
            return Verdict(*found)
    return Verdict(
        "passed",
        f"The recorded gradients equal those that the optimizer used in {len(compared)} steps, computed slowly one by "
        "one, but for clipping.",
    )


def _wrong(case: Case) -> Rule:
    for each in case.seen:
        if each.recorded is None:
            continue
        recorded = np.where(np.isinf(each.recorded) & (each.trusted > OVERFLOW), each.trusted, each.recorded)
        if not _near(recorded, each.trusted):
            worst = np.max(np.abs(recorded - each.trusted) / np.maximum(each.trusted, TINY))
            return "sharded", f"Recorded norms differ from slow ones of the whole gradients, by up to {worst:.1%}."
    return None


def _too_often(case: Case) -> Rule:
    followed = case.seen[:-1]  # what comes after the last call is not known yet
    updates = sum(each.updates for each in followed)
    if any(each.updates == 0 for each in followed):
        return "per-micro-batch", (
            f"recorder.step was called {len(followed)} times for {updates} steps of the optimizer: call it once for "
            "each, after the backward pass of the last micro-batch."
        )
    if updates > len(followed):
        return "missed steps", f"recorder.step was called {len(followed)} times for {updates} steps of the optimizer."
    return None


def _late(case: Case) -> Rule:
    same = [_near(now.used, after.trusted) for now, after in pairwise(case.seen) if now.used is not None]
    if len(same) > 1 and all(same) and not any(_near(each.used, each.trusted) for each in case.compared):
        return "late", "recorder.step is called after optimizer.step: call it before, and before clipping."
    return None


def _scaled(case: Case) -> Rule:
    pairs = [(float(np.median(each.factors)), each.scaler) for each in case.compared if len(each.factors)]
    if not pairs:
        return None
    factors = [factor for factor, _ in pairs]
    power = all(abs(math.log2(factor) - round(math.log2(factor))) < TOLERANCE for factor in factors)
    if (power and min(factors) >= LIKELY_SCALE) or all(factor >= scale / 2 > 1 for factor, scale in pairs):
        return "scaled", (
            f"The gradients were {factors[0]:,.0f} times those that the optimizer used: they were still scaled. Pass "
            "scaler= to the Recorder, or call recorder.step after scaler.unscale_(optimizer)."
        )
    if max(factors) <= 1 / LIKELY_SCALE:
        return "scaled", (
            f"The recorded gradients are {1 / factors[0]:,.0f} times smaller than those that the optimizer used: they "
            "were unscaled already when scale= was given, or are multiplied later."
        )
    return None


def _changed(case: Case) -> Rule:
    grown = [each for each in case.compared if (each.factors < 1 - 5 * TOLERANCE).any()]
    if not grown:
        return None
    mistake = "per-rank" if case.many_ranks else "per-micro-batch"
    cause = "they were reduced over the ranks later" if case.many_ranks else "more micro-batches were added"
    return mistake, (
        f"In {len(grown)} of {len(case.compared)} steps gradients grew between recorder.step and optimizer.step: "
        f"{cause}. Call recorder.step after that, and before clipping."
    )


def _clipped(case: Case) -> Rule:
    rows = [each.trusted for each in case.compared]
    if not all(_near(each.used, each.trusted) for each in case.compared) or all(_near(row, rows[0]) for row in rows):
        return None  # clipped later, as it should be; or the same gradients again, of which nothing can be told
    totals = [float(np.linalg.norm(row)) for row in rows]
    largest = [each.largest for each in case.compared if each.largest is not None]
    # of one tensor alone it proves nothing: the gradient of a bias behind a mean is the same at every step
    several = any(np.sum(row > (1 - 1e-4) * row.max()) > 1 for row in largest)
    peaks = [float(row.max()) for row in largest] if several else []
    for values, what in ((totals, "total norm"), (peaks, "largest entry")):
        if values and max(values) - min(values) < 1e-4 * max(values):
            return "clipped", (
                f"The {what} was {values[0]:.4g} in each of {len(values)} steps: the gradients were clipped already. "
                "Call recorder.step before clipping."
            )
        top = max(values, default=0.0)
        often = sum(value > (1 - SAME) * top for value in values)
        if often > 1 and abs(top - float(f"{top:.2g}")) < SAME * top:
            return "clipped", (
                f"The {what} was {top:.4g} in {often} of {len(values)} steps and never more: the gradients were "
                "clipped to it already. Call recorder.step before clipping."
            )
    return None


def _near(one: np.ndarray | None, other: np.ndarray) -> bool:
    return one is not None and bool(np.allclose(one, other, rtol=TOLERANCE, atol=TINY))


def compare_ranks(own: str, others: Mapping[int, str]) -> Verdict | None:
    """Return the mistake that shows between ranks, from their summaries as JSON; None if they agree."""
    mine = json.loads(own)
    for rank, summary in sorted(others.items()):
        theirs = json.loads(summary)
        if theirs["shapes"] != mine["shapes"] or not np.allclose(theirs["weights"], mine["weights"], rtol=TOLERANCE):
            return Verdict(
                "sharded",
                f"Rank {rank} holds other weights than rank 0, in a way that torch does not know of: what is recorded "
                "is the part of rank 0.",
            )
        pairs = zip(mine["gradients"], theirs["gradients"], strict=False)
        if any(not np.allclose(a, b, rtol=TOLERANCE, atol=TINY, equal_nan=True) for a, b in pairs):
            return Verdict(
                "per-rank",
                f"Rank {rank} had other gradients than rank 0 when recorder.step was called: call it after they are "
                "reduced (with DistributedDataParallel: not inside no_sync).",
            )
    return None
