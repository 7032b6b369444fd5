"""What to try next: one record for each advice, given only where this run holds the evidence for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stabilitylab.report import evidence
from stabilitylab.report.case import Case

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis

__all__ = ["ADVICE", "Advice", "advise"]

MOCO_V3 = ("Chen, Xie and He, 2021, An empirical study of training self-supervised vision transformers",
           "https://arxiv.org/abs/2104.02057")  # fmt: skip
STEMS = ("Xiao et al., 2021, Early convolutions help transformers see better", "https://arxiv.org/abs/2106.14881")
LOSS_SPIKES = ("Wortsman et al., 2023, Stable and low-precision training for large-scale vision-language models",
               "https://arxiv.org/abs/2304.13013")  # fmt: skip
VIT_22B = ("Dehghani et al., 2023, Scaling vision transformers to 22 billion parameters",
           "https://arxiv.org/abs/2302.05442")  # fmt: skip
CLIPPING = ("Pascanu, Mikolov and Bengio, 2013, On the difficulty of training recurrent neural networks",
            "https://arxiv.org/abs/1211.5063")  # fmt: skip
WARMUP = ("Goyal et al., 2017, Accurate, large minibatch SGD", "https://arxiv.org/abs/1706.02677")
COLLAPSE = ("Jing et al., 2021, Understanding dimensional collapse in contrastive self-supervised learning",
            "https://arxiv.org/abs/2110.09348")  # fmt: skip
SIMSIAM = ("Chen and He, 2021, Exploring simple Siamese representation learning", "https://arxiv.org/abs/2011.10566")
BF16 = ("Micikevicius et al., 2018, Mixed precision training", "https://arxiv.org/abs/1710.03740")


@dataclass(frozen=True)
class Advice:
    """One thing to try: it is given where `evidence` finds a reason in the run."""

    name: str
    what: str
    """What to do, with the setting that does it where the trainer has one."""
    why: str
    """Why it may help, and how much of it is known."""
    source: tuple[str, str] | None
    """Authors, year and title; address."""
    evidence: Callable[[Case], str | None]
    """Returns what was found in the run that calls for it; nothing where there is none, or it is done already."""


def advise(analysis: Analysis) -> list[tuple[Advice, str]]:
    """Return each advice that the run calls for, with the evidence found in it."""
    case = Case(analysis)
    given = ((each, each.evidence(case)) for each in ADVICE)
    return [(each, reason) for each, reason in given if reason]


ADVICE = (
    Advice(
        "recording", "Repair the recording first.",
        "What is said of gradients that the optimizer did not use says little of the training.", None,
        evidence.recording,
    ),
    Advice(
        "freeze the patch projection",
        "Freeze the patch projection at its random initialization (model.patch_projection=frozen).",
        "It gained 0.4 to 1.7 points in MoCo v3, SimCLR, BYOL and SwAV, more at larger learning rates. It alleviates "
        "the instability and does not solve it.", MOCO_V3, evidence.freeze,
    ),
    Advice(
        "convolutional stem", "Replace the patch projection by a convolutional stem (model.stem=convolutional).",
        "Four or five 3x3 convolutions, at the cost of one block, train stably over a wider range of learning rates "
        "and weight decays.", STEMS, evidence.first_layer,
    ),
    Advice(
        "lower learning rate", "Lower the learning rate, by a third first.",
        "In MoCo v3 with a ViT-B, 1e-4 in place of 1.5e-4 at batch 4096 gained half a point with fewer dips; 0.5e-4 "
        "lost more than that again.", MOCO_V3, evidence.lower_rate,
    ),
    Advice(
        "smooth degradation", "Lower the learning rate, or compare with AdamW, although the curves are smooth.",
        "LAMB at too high a learning rate lost up to 6 points without any visible spike.", MOCO_V3, evidence.drift,
    ),
    Advice(
        "lower beta2", "Lower Adam's beta2, to 0.95 or less (optimizer.betas=[0.9, 0.95]).",
        "A second moment that remembers too long lags behind a sudden gradient, most in the patch embedding, and the "
        "update is too large; loss spikes follow by 1 to 8 steps.", LOSS_SPIKES, evidence.beta2,
    ),
    Advice(
        "clip", "Clip the gradient norm, or the update (optimizer.name=stableadamw).",
        "It bounds what one step can do. Of the patch projection alone it helped MoCo v3 at a very small threshold "
        "only.", CLIPPING, evidence.clip,
    ),
    Advice(
        "normalize queries and keys", "Normalize queries and keys of the attention (model.qk_norm=true).",
        "Attention logits that grow without bound make attention one-hot and the gradients unstable; normalizing "
        "removed that in very large models. In small ones it is not known to matter.", VIT_22B, evidence.qk_norm,
    ),
    Advice(
        "longer warm-up", "Warm up longer (schedule.warmup_steps).",
        "Early gradients are large and the second moments are not settled; MoCo v3 warms up over 40 of 300 epochs.",
        WARMUP, evidence.warmup,
    ),
    Advice(
        "smaller batch", "Use a smaller batch (data.batch_size), with the learning rate in proportion.",
        "In MoCo v3 accuracy fell from 72.6 at a batch of 2k to 69.7 at 6k, with more and deeper dips.",
        MOCO_V3, evidence.batch,
    ),
    Advice(
        "bfloat16", "Use bf16 in place of fp16 (train.precision=bf16).",
        "fp16 overflows above 65,504; bf16 has the range of fp32.", BF16, evidence.half_precision,
    ),
    Advice(
        "prediction head", "Add a prediction head on the query side (method.predictor_layers=2).",
        "Without it, methods without negatives collapse completely; MoCo v3 loses a point.", SIMSIAM,
        evidence.prediction_head,
    ),
    Advice(
        "stop the gradient", "Stop the gradient of one of the two branches (method.stop_gradient=true).",
        "Without negatives and without it, all embeddings become equal within an epoch.", SIMSIAM,
        evidence.stop_gradient,
    ),
    Advice(
        "BatchNorm in the heads", "Use BatchNorm in projector and predictor (method.batch_norm=true).",
        "It keeps embeddings of a batch apart; MoCo v3 loses two points without it.", MOCO_V3, evidence.head_norm,
    ),
    Advice(
        "projector", "Put a projector between the representation and the loss (method.projector_layers=3).",
        "The collapse then falls on the projection and spares the representation.", COLLAPSE, evidence.projector,
    ),
    Advice(
        "weaker augmentation", "Weaken the augmentation (crop_scale, color jitter).",
        "Directions along which augmentation varies more than the data lose their weight.", COLLAPSE,
        evidence.weaker_augmentation,
    ),
    Advice(
        "DirectCLR", "Judge the representation rather than the projection; or contrast a part of the representation "
        "without a trained projector (DirectCLR).",
        "A projection collapses more than the representation before it, which alone is used later.", COLLAPSE,
        evidence.direct,
    ),
    Advice(
        "more seeds", "Run more seeds of the same configuration and pool them (stabilitylab analyze RUN RUN --pool).",
        "An exact test needs at least five matched events, and more where their order varies.", None,
        evidence.more_seeds,
    ),
    Advice(
        "record kNN", "Record the kNN accuracy every tens of steps (held_out=..., probes.knn.every=20).",
        "Dips last tens of steps, and a curve by epochs hides them.", MOCO_V3, evidence.record_knn,
    ),
    Advice(
        "record every step", "Record the gradient norms at every step.",
        "The lags in question are a few steps long, and the norms cost five tensor operations a step.", None,
        evidence.every_step,
    ),
)  # fmt: skip
"""In the order in which they are shown."""
