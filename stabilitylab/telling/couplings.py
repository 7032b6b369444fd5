"""What is told of couplings: which kind of event warns of which, comes with it, or follows it."""

from __future__ import annotations

import math
from typing import Any

from stabilitylab.findings import Finding
from stabilitylab.phrasing import count, equals, signed
from stabilitylab.telling.evidence import Evidence

__all__ = ["tell_couplings"]

CLEAR = ("warns", "follows", "together")

WORDS = {
    "gradient": "gradient spikes",
    "update": "update-norm spikes",
    "adam": "spikes of Adam's RMS",
    "loss": "loss spikes",
    "accuracy": "falls of the accuracy",
}

METHOD = (
    "onsets of events, those within a gap joined; largest excess after, before and near the warning against targets "
    "moved one by one and in blocks, Holm's correction over couplings; order by the sign test of one-to-one matched "
    "events, corrected likewise, beyond what the spacing of the measurements hides; a layer's updates and RMS are the "
    "quadratic mean over its tensors, each over its own median; what is not finite is left out"
)


def tell_couplings(evidence: Evidence) -> list[Finding]:
    """Say which couplings are clear; nothing where there is neither a gradient spike nor one of them."""
    table = evidence.couplings
    clear = [] if table.empty else table[table["verdict"].isin(CLEAR)].to_dict("records")
    if table.empty or not (clear or evidence.episodes):
        return []
    verdicts = [str(each) for each in table["verdict"]]
    tested = sum(each not in ("not recorded", "too few events") for each in verdicts)
    if clear:
        said = "; ".join(_said({str(key): value for key, value in row.items()}) for row in clear)
        p = max(row["p_adjusted"] for row in clear)
        sentence = f"{said[:1].upper()}{said[1:]}. "
        most = " at most" if len(clear) > 1 else ""
        sentence += f"Against moved targets p {equals(p)}{most}, corrected over {count(tested, 'coupling')}."
        verdict = "coupled"
    elif tested:
        sentence = f"Of {count(tested, 'coupling')} between kinds of events none stands out of chance."
        verdict = "no better than chance"
    elif "too few events" in verdicts:
        sentence = "Whether one kind of event warns of another cannot be said: of each pair one has too few."
        verdict = "too few events"
    else:
        sentence, verdict = "No two kinds of events that could be coupled were recorded.", "not recorded"
    names = [f"{row.warning} > {row.target}" for row in table.itertuples()]
    numbers: dict[str, Any] = {"verdicts": dict(zip(names, verdicts, strict=True)), "tested": tested}
    known = [each not in ("not recorded", "too few events") for each in verdicts]
    for name in ("matched", "lead", "low", "high", "precision", "recall", "p_adjusted", "p_smallest"):
        each = zip(names, table[name].tolist(), known, strict=True)
        numbers[name] = {key: value for key, value, is_known in each if is_known}
    events = _events(evidence, clear)
    parameters = {
        name: evidence.parameters[name] for name in ("horizon", "near", "episode_gap", "alpha", "draws", "seed")
    }
    return [Finding("couplings", sentence, verdict, numbers, METHOD, parameters, events)]


def _events(evidence: Evidence, clear: list[dict[Any, Any]]) -> tuple[Any, ...]:
    """Return the events of clear couplings that stand in no other finding."""
    sides = {(row[f"{side}_series"], row[f"{side}_label"]) for row in clear for side in ("warning", "target")}
    return tuple(each for each in evidence.companions if (each.series, each.label) in sides)


def _said(row: dict[str, Any]) -> str:
    """Return a clause on a clear coupling."""
    warning, target = _many(row["warning"], row["warning_label"]), _many(row["target"])
    bounds = "" if math.isnan(row["low"]) else f" [{row['low']:+.1f}, {row['high']:+.1f}]"
    lead = f"{signed(row['lead'])} steps{bounds}"
    if row["verdict"] == "together":
        hidden = max(row["warning_every"], row["target_every"])
        unseen = f"; an order within {hidden:,} steps cannot be seen" if hidden > 1 else ""
        return f"{warning} come together with {target} ({row['matched']:,} matched, lag {lead}{unseen})"
    if row["verdict"] == "follows":
        sooner = f"{row['sooner']:,} of {row['matched']:,} matched come after"
        return f"{warning} do not warn of {target} but follow them ({sooner}, lead {lead})"
    followed = f"{row['followed']:,} of {row['warnings']:,} followed within {row['horizon']:,} steps"
    moved = f"{100 * row['precision_by_chance']:.0f} % by chance"
    return f"{warning} warn of {target}, lead {lead} ({followed}, {moved})"


def _many(name: str, layer: str = "") -> str:
    """Return the events of a signal in words, with the layer that they are of."""
    if name.startswith("rank"):
        return f"drops of the effective {name}"
    return WORDS[name] + (f" ({layer})" if layer else "")
