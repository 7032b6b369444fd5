"""The verdict in three sentences: what happened, what leads what, and what it cost or could not be seen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from stabilitylab.phrasing import count, equals, joined, ratio, rounded
from stabilitylab.report.order import order
from stabilitylab.report.reading import number, of, tone

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis
    from stabilitylab.findings import Finding

__all__ = ["divergence", "tone", "verdict"]

TOLD = frozenset({
    "planted", "recording", "sampling", "divergence", "spikes", "where spikes begin", "lead", "order over depth",
    "stabilizers", "couplings", "dips", "after spikes", "collapse", "not judged",
})  # fmt: skip
"""Kinds of finding that the sentences know; of others they say the kind and its verdict."""


UNSEEN = {"spikes": "gradient spikes", "dips": "dips of the accuracy", "divergence": "divergence of the loss"}
"""What could not be seen, by the kind of finding that was not judged."""


def verdict(analysis: Analysis) -> list[str]:
    """Return the three sentences, built from the findings alone."""
    first = analysis.run.layers.first
    return [_sentence(clauses(analysis), first) for clauses in (_happened, order, _cost)]


def _sentence(clauses: list[str], name: str) -> str:
    """Join clauses into one sentence; the name of a layer keeps its spelling."""
    text = "; ".join(clause.strip().rstrip(".") for clause in clauses if clause.strip())
    return f"{text if name and text.startswith(name) else text[:1].upper() + text[1:]}."


def _happened(analysis: Analysis) -> list[str]:
    found: list[str] = []
    minor: list[str] = []
    calm: list[str] = []
    planted = of(analysis, "planted")
    if planted:
        times = sum(len(each["spans"]) for each in analysis.run.planted)
        seen = sum(int(number(each, "found")) for each in planted if number(each, "found") > 0)
        found.append(f"{count(times, 'disturbance')} planted on purpose, {seen} of them found again")
    for each in analysis.findings:
        if each.kind == "recording":
            found.append(f"the recording itself is in doubt ({each.verdict})")
        elif each.kind == "spikes" and tone(each.verdict) != "undecided":
            (calm if each.verdict == "none" else found).append(_spikes(each))
        elif each.kind == "dips" and each.verdict == "dips":
            found.append(f"{count(sum(_falls(each)), 'fall')} of the kNN accuracy")
        elif each.kind == "divergence" and tone(each.verdict) != "undecided":
            (calm if each.verdict == "none" else found).append(divergence(each))
            minor += _of_loss(each)
        elif each.kind == "collapse" and tone(each.verdict) == "found":
            found.append(_collapse(each))
        elif each.kind == "drift" and tone(each.verdict) == "found":
            found.append(f"slow degradation of the accuracy ({each.verdict})")
        elif each.kind not in TOLD and tone(each.verdict) == "found":
            found.append(f"{each.kind}: {each.verdict}")
    whole = [_tap(each) for each in of(analysis, "collapse") if each.verdict == "none"]
    calm += [f"no collapse of the {joined(whole)}"] if whole else []
    found += minor
    if not found and not calm:
        accuracy = any(tone(each.verdict) == "quiet" for each in of(analysis, "dips"))
        return [f"nothing {'but the accuracy' if accuracy else 'of what the detectors look for'} could be judged"]
    if not found:
        return [f"nothing happened that the detectors can see: {', '.join(calm)}"]
    return found + calm


def _spikes(finding: Finding) -> str:
    episodes, several = (number(finding, name) for name in ("episodes", "episodes_in_several_layers"))
    if finding.verdict == "none" or not episodes > 0:
        return "no gradient spike"
    said, chance = count(int(episodes), "gradient spike"), number(finding, "false_alarms_expected")
    said += f" (about {rounded(chance, 2)} by chance)" if chance >= 0.05 else ""
    said += (
        f", {int(several)} in several layers at once"
        if several >= 0 and episodes > 1 and number(finding, "layers") != 1
        else ""
    )
    where, tallest = finding.numbers.get("tallest_layer"), number(finding, "tallest")
    if isinstance(where, str) and math.isfinite(tallest):
        size = ratio(tallest)
        said += f", the tallest {size} in {where} at step {number(finding, 'tallest_step'):,.0f}"
    return said + _not_finite(finding)


def _of_loss(finding: Finding) -> list[str]:
    """Say how many spikes of the loss came back."""
    spikes, tallest = (number(finding, name) for name in ("spikes", "tallest_spike"))
    if not spikes > 0 or math.isnan(tallest):
        return []
    said = f"{count(int(spikes), 'spike')} of the loss that came back"
    return [f"{said}, {'the tallest ' if spikes > 1 else ''}{ratio(tallest)} at step "
            f"{number(finding, 'tallest_spike_step'):,.0f}"]  # fmt: skip


def _not_finite(finding: Finding) -> str:
    """Say of which layer the gradient is not finite first, and of how many others it is not; nothing of none."""
    broken = finding.numbers.get("not_finite")
    if not isinstance(broken, dict) or not broken:
        return ""
    first = min(each["first"] for each in broken.values())
    name = next(name for name, each in broken.items() if each["first"] == first)
    others = f" and {count(len(broken) - 1, 'more layer')}" if len(broken) > 1 else ""
    return f", the gradient of {name}{others} not finite, first at step {first:,}"


def divergence(finding: Finding) -> str:
    """Say in a clause what became of the loss."""
    if finding.verdict == "none":
        return "no divergence of the loss"
    said = []
    for name, what in (("left_level", "left its level for good"), ("rising_since", "left its level")):
        since = number(finding, name)
        if not math.isnan(since):
            end = ", and was still away at the end" if name == "rising_since" else ""
            said.append(f"{what} at step {since:,.0f}{end}")
    broken, first = number(finding, "not_finite"), number(finding, "first_not_finite")
    if broken > 0 or not said:
        when = "" if math.isnan(first) else f", first at step {first:,.0f}"
        said.append(f"was not finite at {count(int(broken), 'step')}{when}" if broken > 0 else "left its level")
    return f"the loss {' and '.join(said)}"


def _collapse(finding: Finding) -> str:
    tap = _tap(finding)
    dead, whole, since, until = (number(finding, name) for name in ("dead", "measurable", "since", "until"))
    several, at_end = number(finding, "collapses") > 1, finding.numbers.get("at_end") is True
    said = f"{finding.verdict} collapse of the {tap}"
    said += f" ({dead:.0f} of {whole:.0f} directions dead)" if dead > 0 and whole > 0 else ""
    said += f" from step {since:,.0f}" if since >= 0 else ""
    if several:
        said += f" to step {until:,.0f}, the worst of {number(finding, 'collapses'):.0f}"
        return said + (", one of which lasts to the end" if at_end else ", all of which recovered")
    return said + (" to the end" if at_end else f" to step {until:,.0f}" if until >= 0 else "")


def _tap(finding: Finding) -> str:
    return str(finding.numbers.get("tap", "representation")).replace("_", " ")


def _cost(analysis: Analysis) -> list[str]:
    clauses = []
    for each in of(analysis, "dips"):
        if each.verdict == "none":
            clauses.append(f"no dip of the kNN accuracy beyond its fluctuation{_blind(each)}")
        elif each.verdict == "dips":
            clauses.append(_deepest(each))
    for each in of(analysis, "after spikes"):
        fall, p = 100 * number(each, "fall"), number(each, "p")
        if tone(each.verdict) != "undecided" and math.isfinite(fall) and math.isfinite(p):
            way = "lower" if fall >= 0 else "higher"
            chance = "" if tone(each.verdict) == "found" else ", no more than chance"
            clauses.append(f"after spikes it is {abs(fall):.1f} points {way} on average (p {equals(p)}{chance})")
    reasons = [UNSEEN[each.kind] for each in analysis.findings if each.kind in UNSEEN and each.verdict == "not judged"]
    reasons += [text for each in of(analysis, "not judged") for text in _reasons(each)]
    if reasons:
        clauses.append(f"not to be seen in this run: {joined(reasons, 4)}")
    return clauses or [_power(analysis)]


def _blind(finding: Finding) -> str:
    """Say that even the deepest dip that was planted into the run may be missed, where that is so."""
    planted = finding.numbers.get("planted_found")
    if not isinstance(planted, dict) or not planted or max(planted.values()) >= 0.8:
        return ""
    return f", in which even one of {100 * max(map(float, planted)):.0f} points might have been missed"


def _falls(finding: Finding) -> list[int]:
    """Return how many falls of the accuracy recovered, did not, and are still open."""
    return [int(times) if (times := number(finding, name)) > 0 else 0 for name in ("dips", "steps", "drops")]


def _deepest(finding: Finding) -> str:
    """Say how deep the accuracy fell, and whether it came back."""
    _, lasting, still = _falls(finding)
    deepest, at = 100 * number(finding, "deepest"), number(finding, "deepest_step")
    several = sum(_falls(finding)) > 1
    said = f"the {'deepest ' if several else ''}fall of the kNN accuracy"
    said += f" costs {deepest:.1f} points at step {at:,.0f}" if math.isfinite(deepest) else " has no depth"
    said += f", {lasting} did not recover" if lasting and several else ", without recovery" if lasting else ""
    return said + (
        ", one is still open at the end" if still and several else ", still open at the end" if still else ""
    )


def _reasons(finding: Finding) -> list[str]:
    reasons = finding.numbers.get("reasons")
    if not isinstance(reasons, dict):
        return []
    return [str(each).split(":", 1)[0] for each in reasons.values()]


def _power(analysis: Analysis) -> str:
    """Say that all was judged, and how small a spike would have been seen where that is known."""
    seen = [each.numbers.get("resolution") for each in of(analysis, "spikes")]
    ratios = sorted(float(value) for each in seen if isinstance(each, dict) for value in each.values())
    if not ratios:
        return "nothing that was looked for went unjudged"
    usual = ratios[len(ratios) // 2]
    return f"in {count(len(ratios), 'layer')} a spike of {ratio(usual)} would usually have been seen"
