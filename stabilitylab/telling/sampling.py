"""What is told of a log that somebody else wrote: how often it was logged, and what that cannot show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from stabilitylab.findings import Finding
from stabilitylab.phrasing import count, joined
from stabilitylab.telling.evidence import Evidence

__all__ = ["tell_sampling"]


def tell_sampling(evidence: Evidence) -> list[Finding]:
    """Say how often each series of an imported run was logged, which lags cannot be seen, and what was lost before."""
    run = evidence.run
    imported = run.header.get("imported")
    if not isinstance(imported, dict):
        return []
    known = {name: run.about(name).get("sampling") for name in run.series}
    sampling = {name: each for name, each in known.items() if isinstance(each, dict) and each.get("rows")}
    told = [name for name in sampling if not name.startswith("imported.")] or list(sampling)
    unit = "epoch" if "epoch" in _counters(imported) else "step"
    said = [_how_often({name: sampling[name] for name in told}, unit)]
    every = _every(sampling.get("gradients.norm", {}))
    if every > 1:
        said.append(
            f"Lags under {every:,} {unit}s cannot be seen, nor can spikes that lie between two rows of the gradients."
        )
    if "gradients.norm" in sampling and "estimated" in run.about("gradients.norm"):
        said.append("The gradient norms are estimated from histograms.")
    odd = sum(int(run.about(name).get("nonfinite") or 0) for name in sampling)
    seen = f"{count(odd, 'value')} here {'is' if odd == 1 else 'are'} not finite" if odd else "none is here"
    said.append(f"Whether the logger dropped NaN and inf cannot be known ({seen}), nor whether it clipped or averaged.")
    numbers = {"every": every, "unit": unit, "nonfinite": odd, "sampling": sampling, "notes": imported.get("notes")}
    method = "median and largest number of steps between the rows of each series"
    return [Finding("sampling", " ".join(said), "none" if every == 1 else "not judged", numbers, method)]


def _counters(imported: Mapping[str, Any]) -> set[str]:
    files = imported.get("files")
    return {str(each.get("steps")).lower() for each in files} if isinstance(files, list) else set()


def _every(sampling: Mapping[str, Any]) -> int:
    every = sampling.get("every", 0)
    return int(every) if isinstance(every, int | float) else 0


def _how_often(sampling: Mapping[str, Mapping[str, Any]], unit: str) -> str:
    """Say of all series how often they were logged, those alike together, and the largest gap where it is larger."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name, each in sampling.items():
        every, largest = _every(each), int(each.get("largest_gap") or 0)
        often = "once" if every == 0 else f"every {unit}" if every == 1 else f"every {every:,} {unit}s"
        alike[often + (f" with gaps of up to {largest:,}" if largest > every else "")].append(name)
    parts = [f"{often} ({joined(names, 4)})" for often, names in alike.items()]
    return f"This run was imported from a log. It was logged {'; '.join(parts)}."
