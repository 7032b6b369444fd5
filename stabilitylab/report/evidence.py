"""The evidence for each advice: a sentence on what was found in a run, or nothing, also where it is done already."""

from __future__ import annotations

import math

from stabilitylab.leads import FEWEST
from stabilitylab.phrasing import count, ratio
from stabilitylab.report.case import Case
from stabilitylab.report.verdict import divergence

__all__ = [
    "batch", "beta2", "clip", "direct", "drift", "every_step", "first_layer", "freeze", "half_precision",
    "head_norm", "lower_rate", "more_seeds", "prediction_head", "projector", "qk_norm", "record_knn",
    "recording", "stop_gradient", "warmup", "weaker_augmentation",
]  # fmt: skip


def recording(case: Case) -> str | None:
    """What is wrong with the recording."""
    found = case.finding("recording")
    return f"The recording is in doubt: {found.verdict}." if found else None


def first_layer(case: Case) -> str | None:
    """That most spikes are tallest in a patch projection, or begin there."""
    if not case.from_first or not case.patches or 2 * case.from_first < len(case.shared):
        return None
    begins = case.finding("where spikes begin", "first layer")
    how = f"began in {case.first} alone, or had the tallest spike there" if begins else f"were tallest in {case.first}"
    return f"Of {count(len(case.shared), 'episode')} in several layers {case.from_first} {how}."


def freeze(case: Case) -> str | None:
    """The same, where that projection is trained."""
    frozen = case.setting("model.patch_projection") == "frozen" or case.number("optimizer.stem_factor") == 0
    frozen = frozen or case.number("optimizer.stem_frozen_after") is not None
    parts = case.setting("model.frozen")
    done = frozen or (isinstance(parts, list) and case.first in parts)
    return None if done else first_layer(case)


def _spikes_hurt(case: Case) -> str | None:
    """Return the evidence that the training is less stable than rare noise would make it."""
    diverged, falls = case.finding("divergence", "diverged"), case.finding("after spikes", "falls")
    number = len(case.shared)
    spikes = f"{count(number, 'spike')} in several layers at once"
    if diverged is not None and (number or not diverged.numbers.get("not_finite")):
        said = divergence(diverged)
        were = "was" if number == 1 else "were"
        return f"{said[:1].upper()}{said[1:]}" + (f", and there {were} {spikes}." if number else ".")
    if falls is not None:
        return f"{spikes}, and the accuracy falls after spikes on average."
    return f"{spikes}." if number >= 3 else None


def lower_rate(case: Case) -> str | None:
    """That the training is unstable, and at which learning rate."""
    evidence, rate = _spikes_hurt(case), case.number("optimizer.lr") or case.number("optimizer.base_lr")
    return f"{evidence} The learning rate was {rate:g}." if evidence and rate else evidence


def drift(case: Case) -> str | None:
    """That the accuracy degrades without a spike."""
    found = case.finding("drift")
    quiet = ("none", "not judged", "too few events", "inconclusive", "not recorded")
    if found is None or found.verdict in quiet or found.verdict.startswith("too few"):
        return None
    return f"The accuracy degrades without a spike that explains it ({found.verdict})."


def beta2(case: Case) -> str | None:
    """That Adam's RMS spikes, where beta2 is large."""
    betas, name = case.setting("optimizer.betas"), case.setting("optimizer.name")
    slow = betas[1] if isinstance(betas, list | tuple) and len(betas) == 2 else None
    if (isinstance(slow, int | float) and slow <= 0.95) or name in ("sgd", "lars", "momentum"):
        return None
    number = case.events_in("adam")
    was = f" beta2 was {slow:g}." if isinstance(slow, int | float) else ""
    return f"{count(number, 'spike')} of Adam's RMS, where its second moment lags behind.{was}" if number >= 3 else None


def clip(case: Case) -> str | None:
    """That spikes are tall, and nothing clips them."""
    clipped = case.setting("stabilize.clip") not in (None, "none") or "gradients.clip" in case.analysis.run
    if clipped or case.setting("optimizer.name") == "stableadamw":
        return None
    heights = [event.height for each in case.shared for event in each.events if math.isfinite(event.height)]
    tall = max(heights, default=0.0)
    if tall < 10:
        return None
    return f"The tallest spike in several layers is {ratio(tall)} its level, and nothing in the record clips it."


def qk_norm(case: Case) -> str | None:
    """That something happens in the attention."""
    number = case.events_in("attention")
    done = case.setting("model.qk_norm")
    return f"{count(number, 'event')} in the attention series." if number and not done else None


def warmup(case: Case) -> str | None:
    """That most spikes come early."""
    steps = case.number("schedule.warmup_steps")
    if not steps or not case.shared:
        return None
    early = sum(each.start <= 2 * steps for each in case.shared)
    if early < 2 or 2 * early < len(case.shared):
        return None
    return f"{early} of {count(len(case.shared), 'spike')} begin within twice the warm-up of {steps:.0f} steps."


def batch(case: Case) -> str | None:
    """That the training is unstable at a large batch."""
    batch, evidence = case.number("data.batch_size"), _spikes_hurt(case)
    return f"{evidence} The batch held {batch:,.0f} images." if evidence and batch and batch >= 2048 else None


def _complete(case: Case) -> str | None:
    for tap in ("representation", "projection"):
        if case.collapse(tap, "complete"):
            return f"All embeddings of the {tap} became equal."
    return None


def prediction_head(case: Case) -> str | None:
    """A complete collapse without a prediction head."""
    layers, switch = case.number("method.predictor_layers"), case.setting("method.predictor")
    unsaid = layers is None and switch is None
    missing = layers == 0 or switch is False or (unsaid and "predictor" not in case.analysis.run.layers.names)
    return _complete(case) if missing else None


def stop_gradient(case: Case) -> str | None:
    """A complete collapse with a gradient through both branches."""
    return _complete(case) if case.setting("method.stop_gradient") is False else None


def head_norm(case: Case) -> str | None:
    """A complete collapse without BatchNorm in the heads."""
    return _complete(case) if case.setting("method.batch_norm") is False else None


def _dead(case: Case, tap: str) -> str | None:
    found = case.collapse(tap, "dimensional")
    if found is None:
        return None
    dead, of = found.numbers.get("dead"), found.numbers.get("measurable")
    return f"{dead} of {of} directions of the {tap} are dead." if dead and of else f"The {tap} lost directions."


def projector(case: Case) -> str | None:
    """A dimensional collapse of the representation without a projector."""
    if case.setting("method.name") == "supervised":
        return None
    layers = case.number("method.projector_layers")
    has_one = layers > 0 if layers is not None else "projector" in case.analysis.run.layers.names
    return None if has_one else _dead(case, "representation")


def weaker_augmentation(case: Case) -> str | None:
    """A dimensional collapse."""
    return _dead(case, "representation") or _dead(case, "projection")


def direct(case: Case) -> str | None:
    """A dimensional collapse of the projection alone."""
    if case.setting("method.name") == "directclr" or _dead(case, "representation"):
        return None
    return _dead(case, "projection")


def half_precision(case: Case) -> str | None:
    """A loss that is not finite in fp16."""
    found = case.finding("divergence", "diverged")
    broken = found is not None and bool(found.numbers.get("not_finite"))
    return "The loss was not finite, in fp16." if broken and case.setting("train.precision") == "fp16" else None


def more_seeds(case: Case) -> str | None:
    """Spikes too few to say which layer leads."""
    found = case.finding("lead", "too few events", "inconclusive")
    if found is None or not case.shared:
        return None
    table = case.analysis.lags
    most = int(table["matched"].max()) if len(table) else 0
    are = "is" if most == 1 else "are"
    if most >= FEWEST:
        unclear = int((table["verdict"] == "inconclusive").sum())
        return f"The order of {case.first} with {count(unclear, 'later layer')} is undecided, by up to {most} spikes."
    return (
        f"At most {count(most, 'spike')} of {case.first} {are} matched in a later layer: which leads stays undecided."
    )


def record_knn(case: Case) -> str | None:
    """Spikes without a curve that could say what they cost."""
    if not case.shared or "knn.accuracy" in case.analysis.run:
        return None
    return f"{count(len(case.shared), 'spike')} in several layers, and no kNN accuracy to say what they cost."


def every_step(case: Case) -> str | None:
    """Spikes that were sampled too seldom to be timed."""
    found = case.finding("not judged")
    reasons = found.numbers.get("reasons") if found else None
    why = reasons.get("sampling") if isinstance(reasons, dict) else None
    return f"{str(why)[:1].upper()}{str(why)[1:]}." if why and case.analysis.episodes else None
