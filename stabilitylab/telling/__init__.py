"""From the evidence to findings: sentences that a person understands, each with what it stands on."""

from __future__ import annotations

from stabilitylab.findings import Finding
from stabilitylab.telling import accuracy, gradients, record
from stabilitylab.telling.evidence import Evidence

__all__ = ["Evidence", "tell"]


def tell(evidence: Evidence) -> list[Finding]:
    """Return the findings in the order in which a person wants to read them."""
    return [
        *record.tell_recording(evidence),
        *record.tell_divergence(evidence),
        *gradients.tell_spikes(evidence),
        *gradients.tell_origin(evidence),
        *gradients.tell_lead(evidence),
        *accuracy.tell_dips(evidence),
        *accuracy.tell_aftermath(evidence),
        *record.tell_collapse(evidence),
        *record.tell_others(evidence),
        *record.tell_not_judged(evidence),
    ]
