"""Collapse: embeddings that are all equal (complete), or span only a subspace (dimensional)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from stabilitylab import parameters
from stabilitylab.findings import Event
from stabilitylab.stats.robust import runs_of
from stabilitylab.stats.spectrum import dead_directions, resolution

if TYPE_CHECKING:
    from stabilitylab.run import Run

__all__ = ["Detector", "Parameters", "deviation"]

SPREAD = 0.1
"""Normalized features with more than this part of the deviation of evenly spread ones are not all equal."""


class Parameters(parameters.Parameters):
    """What counts as a collapse."""

    dead: float = Field(1e-3, gt=0, lt=1)
    """A dead direction has less than this part of the largest eigenvalue (the limit of the published toy models)."""
    below_law: float = Field(0.1, gt=0, le=1)
    """And less than this part of what power and exponential laws through the larger ones predict, after sampling."""
    below_own: float = Field(1e-5, gt=0, lt=1)
    """Dead as well: less than this part of what the direction of the same rank was before, both over the largest."""
    share: float = Field(0.1, gt=0, lt=1)
    """Smallest share of the measurable directions that must be dead; below it a few null directions are normal."""
    vanished: float = Field(1e-6, gt=0, lt=1)
    """Collapse is complete when the total variance falls below this part of its largest value so far."""
    persistence: int = Field(3, ge=1)
    """Number of measurements in a row that must agree."""


class Detector:
    """Finds complete and dimensional collapse in the eigenvalues of the covariance of embeddings.

    The label of an event is the first direction that is dead: ``0`` is a complete collapse. A low rank at the first
    measurement is not an event while it still grows: random weights give one. Where the deviation of the normalized
    features is known (``about["feature_std"]``: a Series over steps), a variance that vanishes because only the scale
    of the embeddings shrinks is no collapse.
    """

    series: ClassVar[tuple[str, ...]] = tuple(
        f"spectrum.{momentum}{tap}"
        for momentum in ("", "momentum_")
        for tap in ("representation", "projection", "prediction")
    )

    def __init__(self, parameters: Parameters | None = None) -> None:
        self.parameters = parameters or Parameters()

    def detect(self, name: str, frame: pd.DataFrame, about: Mapping[str, Any]) -> list[Event]:
        """Return the events ``collapse``, ordered by start; a column is an eigenvalue, descending.

        Height is the largest number of dead directions; score is the ratio of the usual variance to the smallest
        one (complete), or of the number of dead directions to that at which an event begins (dimensional).
        """
        counted = self.count(frame, about)
        if counted.empty:
            return []
        steps, total, gone, dead = (counted[each].to_numpy() for each in ("step", "variance", "complete", "dead"))
        dimensions, measurable = frame.shape[1], self._measurable(frame, about)
        largest = _usual(total)
        events = []
        for first, last in self._lasting(gone):
            smallest = max(float(total[first : last + 1].min()), np.finfo(float).tiny)
            at = (first, first, first + int(np.argmin(total[first : last + 1])), last)
            events.append(self._event(name, steps, at, 0, dimensions, float(largest[first]) / smallest))
        limit = max(2.0, self.parameters.share * measurable)
        for first, last in self._lasting(dead >= limit):
            late = dead[(first + 3 * last) // 4]
            if first == 0 and dead[last] < min(0.9 * late, late - 1):
                continue  # still growing out of its random weights
            if first == 0 and last < len(dead) - 1:
                continue  # has grown out of them
            inside = dead[first : last + 1]
            onset = first + int(np.argmax(inside >= inside.max() / 2))
            at = (first, onset, first + int(np.argmax(inside)), last)
            lowest = measurable - int(inside.max())
            events.append(self._event(name, steps, at, lowest, int(inside.max()), float(inside.max() / limit)))
        return sorted(events)

    def count(self, frame: pd.DataFrame, about: Mapping[str, Any]) -> pd.DataFrame:
        """Return one row for each spectrum that is finite: ``step``, total ``variance``, ``complete`` and ``dead``.

        The last two say whether the variance has vanished, and how many directions are dead if it has not.
        """
        values = frame.to_numpy(dtype=float)
        whole = np.isfinite(values).all(axis=1) & (frame.shape[1] > 0)
        steps, values = frame.index.to_numpy()[whole], -np.sort(-values[whole], axis=1)
        total, dead = np.maximum(values, 0.0).sum(axis=1), np.zeros(len(values), dtype=int)
        gone = total <= self.parameters.vanished * _usual(total)
        if about.get("feature_std") is not None:
            even = about["feature_std"].reindex(steps).to_numpy(dtype=float) * np.sqrt(frame.shape[1])
            gone &= ~(even > SPREAD)
        if len(values):
            samples = int(about["samples"]) if about.get("samples") else None
            values = np.maximum(values, resolution(values))
            dead = dead_directions(values, samples, self.parameters.dead, self.parameters.below_law)
            dead = np.where(gone, 0, np.maximum(dead, self._fallen(values[:, : self._measurable(frame, about)])))
        return pd.DataFrame({"step": steps, "variance": total, "complete": gone, "dead": dead})

    @staticmethod
    def _measurable(frame: pd.DataFrame, about: Mapping[str, Any]) -> int:
        """Return how many directions so many samples can measure."""
        samples = about.get("samples")
        return min(frame.shape[1], max(int(samples) - 1, 1)) if samples else frame.shape[1]

    def _fallen(self, values: np.ndarray) -> np.ndarray:
        """Return how many directions of each spectrum have lost their own share of the largest one."""
        share = values / np.maximum(values[:, :1], np.finfo(float).tiny)
        best = np.maximum.accumulate(share, axis=0)
        carried = best > values.shape[1] * np.finfo(np.float32).eps ** 2  # more than rounding, once
        lost = (share < self.parameters.below_own * best) & (share < self.parameters.dead)
        return np.asarray((lost & carried).sum(axis=1))

    def _lasting(self, mask: np.ndarray) -> list[tuple[int, int]]:
        found = [(int(first), int(last)) for first, last in zip(*runs_of(mask), strict=True)]
        return [each for each in found if each[1] - each[0] + 1 >= self.parameters.persistence]

    @staticmethod
    def _event(
        name: str, steps: np.ndarray, at: tuple[int, int, int, int], direction: int, height: float, score: float
    ) -> Event:
        start, onset, peak, stop = (int(steps[each]) for each in at)
        return Event(start, onset, peak, stop, "collapse", name, str(direction), float(height), score)

    @staticmethod
    def example(rng: np.random.Generator) -> tuple[str, pd.DataFrame, dict[str, Any], list[Event]]:
        """Return spectra whose last six directions of sixteen die at step 1000, and the event that must be found."""
        samples, dimensions, steps = 500, 16, np.arange(0, 2000, 50)
        rows = []
        for step in steps:
            scale = np.ones(dimensions)
            scale[10:] = 1.0 if step < 1000 else 1e-3
            data = rng.standard_normal((samples, dimensions)) * scale
            rows.append(np.linalg.eigvalsh(np.cov(data.T))[::-1])
        columns = [str(each) for each in range(dimensions)]
        frame = pd.DataFrame(np.array(rows), index=pd.Index(steps, name="step"), columns=columns)
        expected = [Event(1000, 1000, 1000, 1950, "collapse", "spectrum.projection", "10", 6.0, 3.0)]
        return "spectrum.projection", frame, {"samples": samples, "dimensions": dimensions}, expected


def deviation(run: Run, series: str) -> pd.Series | None:
    """Return the deviation of the normalized features whose spectra are a series, where the run holds it."""
    tap = series.removeprefix("spectrum.")
    if "spectrum.feature_std" not in run or tap not in run.about("spectrum.feature_std")["labels"]:
        return None
    return run.read("spectrum.feature_std", [tap])[tap]


def _usual(total: np.ndarray) -> np.ndarray:
    """Return the largest variance up to each measurement, but for single ones that are out of line."""
    lasting = total.copy()
    if len(total) > 2:
        lasting[2:] = np.median([total[:-2], total[1:-1], total[2:]], axis=0)
        lasting[1] = min(total[0], total[1])
    return np.maximum.accumulate(lasting)
