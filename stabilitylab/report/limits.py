"""What each kind of statement cannot say; shown beside it."""

from __future__ import annotations

from types import MappingProxyType

__all__ = ["LIMITS", "limit"]

LIMITS = MappingProxyType(
    {
        "recording": "Only the first steps are compared with gradients computed the slow way.",
        "sampling": "What was left out, averaged or clipped before it was recorded leaves no trace.",
        "divergence": "A rise in the last steps is told as one that may come back, in the last ten not at all; what "
        "swings around its level, even ever wider, or slowly loses a part of what it had learned, is not seen.",
        "spikes": "A spike lower than the least visible ratio of its layer is missed; a rise that stays, or has stayed "
        "for 50 steps where the record ends, is a shift of the level, and only what stands out of the level that "
        "stays is a spike; of the first steps too little past is known.",
        "where spikes begin": "Onsets are whole steps: a tie says only that the order lies within one step. Where "
        "rises are gradual, the onset of a tall spike is found earlier than that of a small one; so the peaks must "
        "confirm what is claimed, and only the test of lead looks at events of similar height.",
        "lead": "An order in time within one run is no cause: all layers share one backward pass. With fewer than "
        "five matched events, or with events in too few separate episodes, nothing can be claimed.",
        "order over depth": "A ranking over layers says nothing of how far they are apart; onsets are whole steps.",
        "stabilizers": "Gradients are recorded before clipping: where it acted, the optimizer saw a smaller spike. "
        "What would have happened without it, only a run without it tells.",
        "dips": "A fall shorter than the spacing of the measurements, or smaller than what the number of images can "
        "tell, is missed; the first 13 measurements only say how much the curve wanders. The kNN accuracy stands for "
        "the representation, not for a later task.",
        "after spikes": "An average over spikes: single ones may differ; what else changed there is not known.",
        "collapse": "Directions beyond the number of samples cannot be measured; a final LayerNorm always leaves one "
        "direction without variance. Directions below a thousandth of the largest count as dead, also where a few "
        "directions outweigh all others.",
        "drift": "A slow fall is compared with the curve's own past or with the reference runs given: another length "
        "or schedule alone can differ. A curve that wanders for as long as it falls cannot be told from one that "
        "falls, and is called a drift in up to one of eight; against its own past a curve needs 32 measurements.",
        "couplings": "Two series that follow each other may share a cause; lags below the spacing of a series are not "
        "seen.",
        "planted": "What was planted is known from the run's header, which whoever wrote the run has filled in.",
        "not judged": "No statement is made about what is listed here.",
    }
)
"""Kind of finding to its limits."""


def limit(kind: str) -> str:
    """Return the limits of a kind of finding."""
    return LIMITS.get(kind, "Whoever added this kind of finding stated no limits of its own.")
