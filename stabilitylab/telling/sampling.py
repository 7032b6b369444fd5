"""What is told of a record with rows apart, and of somebody else's log: what its sampling cannot show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stabilitylab.findings import Finding
from stabilitylab.phrasing import count, joined
from stabilitylab.sampling import blind_span, spacing
from stabilitylab.telling.evidence import Evidence

if TYPE_CHECKING:
    from stabilitylab.run import Run

__all__ = ["tell_sampling"]

LAYERED = ("gradients.norm", "gradients.max", "updates.ratio", "adam.rms")
"""Series with columns for layers, that in whose rows spikes are sought first."""

METHOD = "median and largest number of steps between the rows of each series"


def tell_sampling(evidence: Evidence) -> list[Finding]:
    """Say how often gradients were recorded, if not at every step, and what that hides; more of an imported run."""
    imported = evidence.run.header.get("imported")
    if isinstance(imported, dict):
        return [_imported(evidence.run, imported)]
    frame = evidence.frames.get("gradients.norm")
    every = 1 if frame is None else spacing(frame.index.to_numpy())
    apart = 1 if frame is None else blind_span(frame.index.to_numpy())
    if every == apart == 1:
        return []
    irregular = f" on the median, most within {apart:,}" if apart > every else ""
    often = "every step" if every == 1 else f"every {every:,} steps"
    sentence = f"The gradients were recorded {often}{irregular}. {_unseen(apart, 'step')}"
    return [Finding("sampling", sentence, "not judged", {"every": every, "unit": "step"}, METHOD)]


def _unseen(every: int, unit: str) -> str:
    return (
        f"Lags under {every:,} {unit}s cannot be seen, nor can spikes that lie between two rows of the gradients; what "
        f"begins at a row may have begun up to {every - 1:,} {unit}{'' if every == 2 else 's'} before it."
    )


def _imported(run: Run, imported: Mapping[str, Any]) -> Finding:
    """Say how often each series was logged, which lags cannot be seen, and what was lost before."""
    known = {name: run.about(name).get("sampling") for name in run.series}
    sampling = {name: each for name, each in known.items() if isinstance(each, dict) and each.get("rows")}
    told = [name for name in sampling if not name.startswith("imported.")] or list(sampling)
    unit = "epoch" if "epoch" in _counters(imported) else "step"
    said = [_how_often({name: sampling[name] for name in told}, unit)]
    layered = next((sampling[name] for name in LAYERED if name in sampling), {})
    every = _every(layered)
    apart = max(every, _every(layered, "most_gaps"))
    if apart > 1:
        said.append(_unseen(apart, unit))
    if "gradients.norm" in sampling and "estimated" in run.about("gradients.norm"):
        said.append("The gradient norms are estimated from histograms.")
    odd = sum(int(run.about(name).get("nonfinite") or 0) for name in sampling)
    seen = f"{count(odd, 'value')} here {'is' if odd == 1 else 'are'} not finite" if odd else "none is here"
    said.append(f"Whether the logger dropped NaN and inf cannot be known ({seen}), nor whether it clipped or averaged.")
    numbers = {"every": every, "unit": unit, "nonfinite": odd, "sampling": sampling, "notes": imported.get("notes")}
    return Finding("sampling", " ".join(said), "none" if apart == 1 else "not judged", numbers, METHOD)


def _counters(imported: Mapping[str, Any]) -> set[str]:
    files = imported.get("files")
    return {str(each.get("steps")).lower() for each in files} if isinstance(files, list) else set()


def _every(sampling: Mapping[str, Any], key: str = "every") -> int:
    every = sampling.get(key, 0)
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
