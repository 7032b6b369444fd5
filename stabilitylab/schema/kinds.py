"""The one table of what an analysis can claim: each kind of finding, its verdicts, and its numbers with their units.

A new kind of finding, verdict or number is one entry here; then ``python -m stabilitylab.schema docs/findings.md``
writes the schema and the tables of the page anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = ["FOREIGN", "KINDS", "Kind"]

FOREIGN = "found"
"""The only verdict of a kind that is not in the table: what an installed detector of somebody else found."""

NOT_JUDGED = "the record is too short, or holds too little, to judge it"
FEW = "fewer events than the statement needs"


@dataclass(frozen=True)
class Kind:
    """A kind of finding."""

    says: str
    """What it is about."""
    verdicts: Mapping[str, str]
    """Verdict to its meaning."""
    numbers: Mapping[str, str] = field(default_factory=dict)
    """Name of a number to its meaning and unit; not every finding has all of them."""
    needs: tuple[str, ...] = ()
    """Series of which at least one must be recorded; with it, a kind that is not told had no cause."""


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "planted": Kind(
            "What became of a disturbance that was planted on purpose; one finding for each.",
            {
                "all found": "each time that it was planted",
                "some found": "not each time",
                "none found": "no time",
                "not judged": NOT_JUDGED,
            },
            {
                "planted": "what was planted: kind, place, size, first and last step of each time",
                "found": "times found",
                "judged": "times that the record allows to judge",
                "times": "each time: first and last step, whether it was found, by what and at which step",
                "responses": "layer and series to how they respond: change (ratio, or part of 1), lag in steps, p",
            },
        ),
        "recording": Kind(
            "What is wrong with the recording itself; not told where nothing is.",
            {
                "no gradients": "there were none when the recorder was called",
                "sharded": "a part of a tensor was recorded as the whole",
                "per-micro-batch": "recorded before all micro-batches were added",
                "missed steps": "not called for each step of the optimizer",
                "late": "recorded after the step of the optimizer",
                "scaled": "recorded with the scale of mixed precision",
                "per-rank": "recorded before the reduction over ranks",
                "clipped": "recorded after clipping",
                "rows missing": "rows never reached the disk",
            },
            {
                "self_check": "what the check of the first steps said: mistake and sentence",
                "lost": "what never reached the disk: series, first and last step, rows, reason",
            },
        ),
        "sampling": Kind(
            "What rows apart cannot show; told of gradients that were not recorded at every step and of imported runs.",
            {
                "none": "the gradients of every step are there",
                "not judged": "what lies between the rows cannot be seen",
            },
            {
                "every": "usual number of steps between the rows of the gradients; 0 without gradients",
                "unit": "what is counted: step or epoch",
                "nonfinite": "values that are not finite",
                "sampling": "series to its rows, first and last step, usual and largest number of steps between rows",
                "notes": "what the import did to the log",
            },
        ),
        "divergence": Kind(
            "Whether the loss stayed finite and at its level.",
            {
                "diverged": "not finite at a step, or away from its level for good",
                "rising": "away from its level where the record ends, so late or so slowly that it may still come back",
                "none": "neither; swings around the level, though they grow, and slow rises within its wandering or "
                "that come to rest are not seen",
                "not judged": NOT_JUDGED,
            },
            {
                "not_finite": "steps whose loss was not finite",
                "samples": "recorded losses",
                "spikes": "short rises of the loss over its level that came back",
                "first": "first such step, or that at which it left its level",
                "first_not_finite": "first such step",
                "left_level": "step at which it left its level for good",
                "rising_since": "step from which on it was away from its level, and still was where the record ends",
                "tallest_spike": "largest ratio of such a rise to the level",
                "tallest_spike_step": "its step",
                "false_alarms_expected": "divergences and rises that noise alone would make in this run",
                "planted_found": "jump planted into this run for good, in standard deviations of its noise, to the "
                "part that was found",
            },
            ("training.loss",),
        ),
        "spikes": Kind(
            "How many gradient spikes there are.",
            {"spikes": "at least one", "none": "none was found", "not judged": NOT_JUDGED},
            {
                "episodes": "spikes; of several layers at once they count once",
                "episodes_in_several_layers": "those seen in more than one layer",
                "events": "spikes of single layers",
                "false_alarms_expected": "spikes that chance alone would make in this run",
                "calibration": "what the detector did with this run's own noise, resampled: false alarms in 10,000 "
                "steps of a layer, and the power to find planted spikes; null where that cannot be said",
                "shifts": "rises of a layer's level that stayed",
                "samples": "recorded steps",
                "layers": "layers judged",
                "resolution": "layer to the smallest ratio to its level that would usually have been seen",
                "tallest": "largest ratio to the level; inf where not finite",
                "tallest_layer": "its layer",
                "tallest_step": "its step",
                "silent": "layer to the step from which on its gradient is exactly zero, to the end of the record",
                "not_finite": "layer to how many steps its gradient is not finite at, the first and the last",
            },
            ("gradients.norm",),
        ),
        "where spikes begin": Kind(
            "Which layers are hit first and tallest; told where a spike hits more than one layer.",
            {
                "first layer": "more begin in it alone than without it, and it comes before the others",
                "other layers": "more begin without the first than in it alone, and it comes after the others",
                "together": "most spikes begin in several layers at the same step",
                "no single layer": "nothing of these can be claimed",
                "too few events": FEW,
            },
            {
                "episodes": "spikes that hit more than one layer",
                "begin_in": "layer to the spikes that begin in it, alone or not",
                "begin_alone_in": "layer to the spikes that begin in it alone",
                "tallest_in": "layer to the spikes that are tallest in it alone",
                "several_begin_together": "spikes that begin in several layers at the same step",
                "first_layer_sooner": "spikes in which the onset of the first layer is before most of the others",
                "first_layer_later": "spikes in which it is after most of them",
                "p_first_layer": "one-sided p of its coming sooner so often; of onsets and of peaks the larger",
                "p_other_layers": "the same of it coming later",
            },
            ("gradients.norm",),
        ),
        "lead": Kind(
            "Whether the first layer rises before, with, or after the later ones; told where there are spikes.",
            {
                "leads": "before most of the layers that could be judged",
                "leads some layers": "before half of them or fewer, after none",
                "follows": "after most of them",
                "follows some layers": "after half of them or fewer, before none",
                "in between": "before some layers and after others",
                "together": "within one step of each of them",
                "inconclusive": "no order can be claimed",
                "too few events": FEW,
            },
            {
                "verdicts": "verdict to the layers that have it",
                "judged": "layers with enough matched spikes",
                "matched": "layer to its spikes matched with one of the first layer",
                "clusters": "layer to the separate clusters that these form",
                "ties": "layer to the matched spikes that begin at the same step",
                "p_smallest": "smallest p that so many clusters without a tie could reach",
                "associated": "judged layers whose spikes come with those of the first more often than by chance",
                "p_near_by_width": "steps by which spikes were moved at most, to the largest p of that over layers",
                "other_by_correlation": "layer to its lag in steps by cross-correlation, where that disagrees",
            },
            ("gradients.norm",),
        ),
        "order over depth": Kind(
            "Whether onsets come later the deeper the layer; told where there are spikes and three layers or more.",
            {
                "deeper later": "the deeper the layer, the later it spikes",
                "deeper sooner": "the deeper the layer, the sooner it spikes",
                "none": "no such order can be claimed",
                "too few events": FEW,
            },
            {
                "rows": "spikes that hit three layers or more at different steps",
                "values": "onsets in them",
                "ties": "how many fewer there would be if equal ones of a spike counted once",
                "correlation": "mean rank correlation of onset and depth, from -1 to 1",
                "z": "Page's statistic, standardized; positive where deeper layers are later",
                "p": "two-sided p of Page's test",
                "p_mirror": "two-sided p when whole spikes are mirrored in time",
                "p_smallest": "smallest such p that so many spikes can reach",
                "p_peak": "larger of both p for peaks instead of onsets; 1 where these go the other way",
            },
            ("gradients.norm",),
        ),
        "stabilizers": Kind(
            "What clipping and resets did, where the training had any and they were recorded.",
            {"acted": "at least one of them did", "never acted": "none of them did"},
            {
                "clipped": "each kind of clipping: recorded steps, those in which it acted, part of all factors below "
                "1, the column with most and its part, median and smallest such factor and where, gradient spikes in "
                "which it acted, part of the other steps in which it did",
                "resets": "times that the optimizer forgot its moments",
                "after_reset": "gradient spikes that begin soon after one",
                "after_reset_by_chance": "so many would if they came at any time",
            },
        ),
        "dips": Kind(
            "How often the kNN accuracy fell, and how many falls follow a spike.",
            {"dips": "at least one fall", "none": "none beyond its fluctuation", "not judged": NOT_JUDGED},
            {
                "measurements": "measurements of the accuracy",
                "dips": "falls that recovered",
                "steps": "falls that did not",
                "drops": "falls still open at the end",
                "in_other_columns": "falls in the other columns of the series",
                "judged": "measurements with enough before them",
                "paired": "those compared on the same images",
                "deepest": "depth of the deepest fall, as a part of 1",
                "deepest_step": "its step",
                "area_lost": "accuracy lost in all falls, depth below the level before each times steps",
                "false_alarms_expected": "falls that noise alone would make in this run; an upper bound with votes",
                "planted_found": "depth of a dip planted into this run, as a part of 1, to the part that was found",
                "after_spike": "falls that begin soon after a gradient spike",
                "after_spike_by_chance": "so many would by chance",
                "p_after_spike": "p of so many",
            },
            ("knn.accuracy",),
        ),
        "drift": Kind(
            "Whether the kNN accuracy degraded slowly, against its own past and against reference runs.",
            {
                "drift": "lower than its own best level, without a fall and more than it wanders",
                "worse than references": "lower than runs like the references would be",
                "none": "neither",
                "not judged": NOT_JUDGED,
            },
            {
                "drifts": "events of that kind",
                "fall": "largest fall between two levels, as a part of 1",
                "p": "its p, if the accuracy only rose and wandered",
                "false_alarm_chance": "largest chance of a false alarm, in a curve that wanders slowly; else "
                "it is smaller",
                "reach": "fall that would usually be found, as a part of 1; left out where any could be missed",
                "references": "reference runs compared with",
                "compared_at": "last step that all share",
                "difference": "level there less the mean of theirs, as a part of 1",
                "lowest_expected": "difference below which a run like them seldom lies; NaN for fewer than three",
                "plateau": "step at which nine tenths of the rise were made",
                "plateau_references": "those of the references",
            },
            ("knn.accuracy",),
        ),
        "after spikes": Kind(
            "Whether the kNN accuracy is lower after spikes on average; told where there are spikes.",
            {"falls": "lower, more than chance", "none": "not lower than by chance", "too few events": FEW},
            {
                "episodes": "spikes with measurements before and after",
                "fall": "mean fall, as a part of 1, at the delay where it is clearest",
                "delay": "that delay: usual number of steps from the start of a spike",
                "by_chance": "the same after spikes moved at random, as a part of 1",
                "p": "p of such a fall",
            },
            ("knn.accuracy",),
        ),
        "couplings": Kind(
            "Which kind of event warns of which, over a fixed list of pairs (warning > target); told where there are "
            "gradient spikes or a pair is coupled.",
            {
                "coupled": "at least one pair warns, follows or comes together",
                "no better than chance": "none of those tested does",
                "too few events": FEW,
                "not recorded": "no pair was recorded",
            },
            {
                "verdicts": "pair to warns, follows, together, no better than chance, too few events, not recorded",
                "tested": "pairs with enough events",
                "matched": "pair to its events matched one to one",
                "lead": "pair to the median steps from the warning to the target; negative: the target comes first",
                "low": "pair to the lower end of the 95 % interval of the lead",
                "high": "pair to the upper end",
                "precision": "pair to the part of the warnings that a target follows",
                "recall": "pair to the part of the targets that a warning precedes",
                "p_adjusted": "pair to the p of being coupled, corrected over the pairs",
                "p_smallest": "pair to the smallest p that so many events could reach",
            },
        ),
        "collapse": Kind(
            "Whether the directions of an embedding died; one finding for each embedding.",
            {
                "complete": "all embeddings became equal",
                "dimensional": "they span a subspace",
                "none": "neither",
                "not judged": NOT_JUDGED,
            },
            {
                "tap": "the embedding",
                "dimensions": "its dimensions",
                "samples": "images in each spectrum",
                "measurable": "directions that so many images can measure",
                "rank_first": "effective rank at first",
                "rank_last": "effective rank at last",
                "false_alarms_expected": "collapses that chance alone would make in this run",
                "planted_found": "part of the directions made dead in this run to the part of such that was found",
                "collapses": "number of them",
                "at_end": "whether the record ends in one",
                "dead": "dead directions of the worst one, at most; of equally bad ones the last counts",
                "dead_last": "dead directions at the last step of it; where it is dimensional",
                "since": "first step of it",
                "until": "last step of it",
            },
            (
                "spectrum.representation",
                "spectrum.projection",
                "spectrum.prediction",
                "spectrum.momentum_representation",
                "spectrum.momentum_projection",
                "spectrum.momentum_prediction",
            ),
        ),
        "not judged": Kind(
            "What was not recorded, or not enough; not told where nothing is missing.",
            {"not judged": "what is listed was not judged"},
            {"reasons": "series or subject to the reason"},
        ),
    }
)
"""Kind of finding to what it can say."""
