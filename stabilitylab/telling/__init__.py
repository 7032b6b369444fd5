"""From the evidence to findings: sentences that a person understands, each with what it stands on."""

from __future__ import annotations

from stabilitylab.findings import Finding
from stabilitylab.telling import accuracy, couplings, drift, gradients, leads, planted, record, sampling, stabilizers
from stabilitylab.telling.evidence import Evidence

__all__ = ["Evidence", "tell"]


def tell(evidence: Evidence) -> list[Finding]:
    """Return the findings in the order in which a person wants to read them."""
    return [
        *planted.tell_planted(evidence),
        *record.tell_recording(evidence),
        *sampling.tell_sampling(evidence),
        *record.tell_divergence(evidence),
        *gradients.tell_spikes(evidence),
        *leads.tell_origin(evidence),
        *leads.tell_lead(evidence),
        *stabilizers.tell_stabilizers(evidence),
        *accuracy.tell_dips(evidence),
        *drift.tell_drift(evidence),
        *accuracy.tell_aftermath(evidence),
        *couplings.tell_couplings(evidence),
        *record.tell_collapse(evidence),
        *record.tell_others(evidence),
        *record.tell_not_judged(evidence),
    ]
