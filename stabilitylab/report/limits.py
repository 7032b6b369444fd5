"""What each kind of statement cannot say; shown beside it."""

from __future__ import annotations

from types import MappingProxyType

__all__ = ["LIMITS", "limit"]

LIMITS = MappingProxyType(
    {
        "recording": "Only the first steps are compared with gradients computed the slow way.",
        "sampling": "What a logger left out, averaged or clipped leaves no trace in its log.",
        "divergence": "A jump close to the end of the record is not told from a bump that would return.",
        "spikes": "A spike lower than the least visible ratio of its layer is missed; a rise that stays is a shift of "
        "the level, no spike; of the first steps too little past is known.",
        "where spikes begin": "Onsets are whole steps: a tie says only that the order lies within one step.",
        "lead": "An order in time within one run is no cause: all layers share one backward pass. With fewer than "
        "five matched events, or with events in too few separate episodes, nothing can be claimed.",
        "order over depth": "A ranking over layers says nothing of how far they are apart; onsets are whole steps.",
        "dips": "A fall shorter than the spacing of the measurements, or smaller than what the number of images can "
        "tell, is missed. The kNN accuracy stands for the representation, not for a later task.",
        "after spikes": "An average over spikes: single ones may differ; what else changed there is not known.",
        "collapse": "Directions beyond the number of samples cannot be measured; a final LayerNorm always leaves one "
        "direction without variance.",
        "drift": "A slow fall is compared with the curve's own past or with the reference runs given: another length "
        "or schedule alone can differ.",
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
