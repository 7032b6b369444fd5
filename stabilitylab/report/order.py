"""The second sentence of the verdict: what leads what, with its test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from stabilitylab.phrasing import count, equals, signed
from stabilitylab.report.reading import number, of, tone
from stabilitylab.telling.couplings import WORDS

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis

__all__ = ["order"]


def order(analysis: Analysis) -> list[str]:
    """Return clauses: what the first layer leads, follows or comes with, and which events warn of which."""
    first, table = analysis.run.layers.first, analysis.lags
    if not analysis.episodes:
        if "gradients.norm" not in analysis.run:
            return ["gradients were not recorded, so no layer can be said to lead"]
        looked = any(tone(each.verdict) == "quiet" for each in of(analysis, "spikes"))
        return [f"{'without a spike' if looked else 'without gradients to judge'} there is no order in time to test"]
    if table.empty or not {"layer", "verdict", "matched", "lag", "low", "high", "p_adjusted"} <= set(table):
        return [f"there is no layer to compare {first} with"]
    judged = table[table["verdict"] != "too few events"]
    if judged.empty:
        most = int(table["matched"].max())
        return [
            f"whether {first} leads cannot be said: at most {count(most, 'of its spikes', 'of its spikes')} "
            f"{'is' if most == 1 else 'are'} matched in any one later layer, and five are needed"
        ]
    clauses = [_claim(first, verb, judged) for verb in ("leads", "follows") if (judged["verdict"] == verb).any()]
    together, unclear = (int((judged["verdict"] == name).sum()) for name in ("together", "inconclusive"))
    if together:
        clauses.append(f"{first} rises within one step of {together} of {len(judged)}, as one backward pass makes it")
    if unclear:
        clauses.append(f"its order with {unclear} of {len(judged)} later layers is not decided")
        if len(clauses) == 1:
            clauses = [clauses[0].replace("its order", f"the order of {first}", 1)]
    if len(judged) < len(table):
        clauses.append(f"{count(len(table) - len(judged), 'further layer')} with too few events")
    for each in of(analysis, "order over depth"):
        if each.verdict in ("deeper later", "deeper sooner"):
            when, p = each.verdict.split()[1], equals(number(each, "p"))
            clauses.append(f"the deeper the layer, the {when} it spikes (Page's test, p {p})")
    return clauses + _warnings(analysis)


def _warnings(analysis: Analysis) -> list[str]:
    """Say which kind of event warns of which, the clearest alone."""
    table = analysis.couplings
    warns = table[table["verdict"] == "warns"]
    if warns.empty:
        return []
    row = warns.sort_values("p_adjusted").iloc[0]
    also = f"; {count(len(warns) - 1, 'further warning')} below" if len(warns) > 1 else ""
    warning, target = (WORDS.get(row[name], str(row[name])) for name in ("warning", "target"))
    return [
        f"{warning} warn of {target}, which follow after {row['lead']:g} steps on the median "
        f"(p {equals(float(row['p_adjusted']))}{also})"
    ]


def _claim(first: str, verb: str, judged: pd.DataFrame) -> str:
    """Say of how many layers the first one leads or follows, and of the clearest one by how much."""
    rows = judged[judged["verdict"] == verb]
    best = rows.sort_values(["p_adjusted", "matched"], ascending=[True, False]).iloc[0]
    return (
        f"{first} {verb} {len(rows)} of {count(len(judged), 'later layer')}, most clearly {best['layer']}: lag "
        f"{signed(best['lag'])} steps [{signed(best['low'])}, {signed(best['high'])}] over {int(best['matched'])} "
        f"matched spikes (sign test corrected over layers, p {equals(float(best['p_adjusted']))})"
    )
