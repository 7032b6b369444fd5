"""What a synthetic run contains: a field and a sentence for each thing that can be planted."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stabilitylab import parameters
from stabilitylab.phrasing import count
from stabilitylab.synthetic.noise import Noise, Trend

__all__ = ["Parameters", "Tap"]

Tap = Literal["projection", "representation"]

LARGEST = 2**29
"""So many gradient norms are drawn at most."""


class Parameters(parameters.Parameters):
    """What a synthetic run contains."""

    steps: int = Field(2000, ge=1)
    """Number of steps."""
    layers: int = Field(6, ge=1)
    """Number of layers; the first one is ``patch_embed``, then ``blocks.0`` and so on."""
    tensors: int = Field(1, ge=1)
    """Parameters in each layer, of equal share in its norm."""
    noise: Noise = "gaussian"
    """Shape of the noise of the log norms."""
    sd: float = Field(0.1, ge=0)
    """Standard deviation of that noise (natural logarithm)."""
    autocorrelation: float = Field(0.0, gt=-1, lt=1)
    """Autocorrelation of that noise at one step, on top of any shape."""
    freedom: float = Field(5.0, gt=2)
    """Degrees of freedom of Student's noise: the fewer, the heavier the tails."""
    bursts: float = Field(1.0, ge=1)
    """Factor of the noise in loud stretches, a tenth of the time, on top of any shape; 1 for none."""
    loudness: tuple[float, ...] = (1.0,)
    """Factor of the noise in each layer, one for each or one for all."""
    shared: float = Field(0.0, ge=0, le=1)
    """Share of the variance of the noise that all layers have in common."""
    noise_change_at: int | None = Field(None, ge=0)
    """Step from which the noise is larger or smaller for good."""
    noise_change: float = Field(2.0, ge=0)
    """By which factor."""
    trend: Trend = "flat"
    """What the level does."""
    spikes: tuple[int, ...] = ()
    """Steps at which spikes begin in the first layer."""
    random_spikes: int = Field(0, ge=0)
    """So many more spikes, at random steps."""
    spacing: int = Field(50, ge=1)
    """Smallest distance in steps of a random spike to any other."""
    heights: tuple[float, ...] = (4.0,)
    """Height of the spikes as ratios to the level, one for each layer or one for all; 1 for a layer without any."""
    height_noise: float = Field(0.0, ge=0)
    """Standard deviation of the log height from spike to spike, the same in all layers."""
    lags: tuple[int, ...] = (0,)
    """Delay of the spikes in each layer, in steps, one for each layer or one for all."""
    timing_noise: float = Field(0.0, ge=0)
    """Standard deviation of the delay of each spike in each later layer, in steps."""
    length: int = Field(1, ge=1)
    """Number of steps for which a spike stays at its height."""
    ramp: int = Field(0, ge=0)
    """Number of steps in which a spike rises before it."""
    missed: float = Field(0.0, ge=0, le=1)
    """Share of the spikes that a later layer does not have."""
    phases: tuple[tuple[int, int], ...] = ()
    """Unstable phases: first step of each, and the step after its last."""
    phase_rate: float = Field(0.02, ge=0, le=1)
    """Spikes a step in a phase: in each layer, or in the first one if the phase is coupled."""
    phase_coupled: bool = False
    """Whether the spikes of a phase run through the layers with their lags, or are independent in each layer."""
    nonfinite: tuple[int, ...] = ()
    """Steps at which all gradients and the loss are NaN."""
    dips: tuple[int, ...] = ()
    """Steps at which dips of the kNN accuracy begin."""
    depth: float = Field(0.1, gt=0, lt=1)
    """Depth of the dips."""
    dip_length: int = Field(40, ge=1)
    """Length of the dips in steps."""
    accuracy_steps: tuple[int, ...] = ()
    """Steps from which the accuracy is lower for good."""
    step_depth: float = Field(0.1, gt=0, lt=1)
    """By how much each time."""
    degrade_at: int | None = Field(None, ge=0)
    """Step from which the accuracy degrades slowly, to the end."""
    degrade_by: float = Field(0.06, gt=0, lt=1)
    """How much of it is lost at the end."""
    images: int = Field(500, ge=1)
    """Number of fixed held-out images."""
    knn_every: int = Field(10, ge=1)
    """Steps between measurements of the accuracy."""
    dimensions: int = Field(16, ge=2)
    """Dimensions of the embeddings."""
    spectrum_every: int = Field(50, ge=1)
    """Steps between spectra."""
    taps: tuple[Tap, ...] = ("projection",)
    """Embeddings whose spectrum is recorded."""
    rank: bool = False
    """Whether the effective rank of each spectrum is recorded too, as ``spectrum.rank``."""
    collapse_at: int | None = None
    """Step from which directions are dead."""
    collapse_length: int | None = Field(None, ge=1)
    """For how many steps; nothing for good."""
    collapse_tap: Tap = "projection"
    """In which embedding."""
    dead: int = Field(6, ge=1)
    """How many of them; all dimensions make a complete collapse."""
    diverge_at: int | None = None
    """Step at which the loss jumps for good."""
    updates: bool = False
    """Whether update norms are recorded, as ``updates.ratio``."""
    update_lead: int | None = None
    """An update spike comes so many steps before each gradient spike of the first layer, in each layer that has one."""
    adam: bool = False
    """Whether the RMS of Adam's steps is recorded, as ``adam.rms``."""
    adam_every: int = Field(10, ge=1)
    """Steps between its measurements."""
    adam_lead: int | None = None
    """A spike of the RMS comes so many steps before each gradient spike, and lasts for ``adam_every`` steps."""
    loss_follow: int | None = None
    """A loss spike comes so many steps after each gradient spike of the first layer."""
    dip_follow: int | None = None
    """A dip of the accuracy begins so many steps after each gradient spike of the first layer."""
    rank_follow: int | None = None
    """A drop of the effective rank begins so many steps after each gradient spike of the first layer."""
    rank_drop: float = Field(0.4, gt=0, lt=1)
    """Part of the rank that such a drop takes."""
    rank_length: int = Field(150, ge=1)
    """Length of such a drop in steps."""
    coupled_height: float = Field(4.0, gt=1)
    """Height of the spikes of updates, RMS and loss that gradient spikes have, as ratios to their level."""
    coupled_share: float = Field(1.0, ge=0, le=1)
    """Share of the gradient spikes that have them, drawn for each coupling by itself."""
    seed: int = Field(0, ge=0)
    """Seed of everything random."""

    @field_validator("loudness", "spikes", "heights", "lags", "nonfinite", "dips", "accuracy_steps", mode="before")
    @classmethod
    def _one_is_enough(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _fits(self) -> Parameters:
        for name in ("heights", "lags", "loudness"):
            if len(getattr(self, name)) not in (1, self.layers):
                given = list(getattr(self, name))
                raise ValueError(f"{name} must have one value or one for each of the {self.layers} layers, not {given}")
        if min(self.heights) < 1 or min(self.loudness) < 0:
            raise ValueError("heights must be ratios of 1 or more, and loudness must not be negative")
        if self.dead > self.dimensions:
            raise ValueError(f"dead must not exceed the {self.dimensions} dimensions")
        if self.noise == "autocorrelated" and self.autocorrelation:
            raise ValueError("autocorrelation goes with noise=gaussian, student or bursty; 'autocorrelated' has 0.5")
        if self.steps * self.layers * self.tensors > LARGEST:
            raise ValueError(f"steps x layers x tensors must not exceed {LARGEST:,}")
        if any(not 0 <= start < stop for start, stop in self.phases):
            raise ValueError("phases must be pairs of a first step and a later one")
        if self.collapse_at is not None and self.collapse_tap not in self.taps:
            raise ValueError(f"collapse_tap is {self.collapse_tap!r}, which is not among the taps")
        if self.rank_follow is not None and not (self.rank and self.taps):
            raise ValueError("rank_follow needs rank=true and a tap")
        for lead, series in (("update_lead", "updates"), ("adam_lead", "adam")):
            if getattr(self, lead) is not None and not getattr(self, series):
                raise ValueError(f"{lead} needs {series}=true")
        return self

    @model_validator(mode="after")
    def _lies_inside(self) -> Parameters:
        """Refuse what would begin outside of the run, or after the last measurement that could show it."""
        last = self.steps - 1
        measured, spectra = (last // every * every for every in (self.knn_every, self.spectrum_every))
        latest = dict.fromkeys(("noise_change_at", "nonfinite", "phases", "diverge_at"), last)
        latest |= {"dips": measured, "accuracy_steps": measured, "degrade_at": last - 1, "collapse_at": spectra}
        lag = self.lags[0]
        earliest = dict.fromkeys(latest, 0) | {"spikes": max(0, -lag)}
        latest["spikes"] = min(last, last - self.length - self.ramp - lag)
        if self.spikes and latest["spikes"] < earliest["spikes"]:
            raise ValueError(
                f"spikes of length {self.length:,}, ramp {self.ramp:,} and lag {lag:,} in the first layer do not fit "
                f"into a run of {count(self.steps, 'step')}"
            )
        for name in ("lags", "update_lead", "adam_lead", "loss_follow", "dip_follow", "rank_follow"):
            earliest[name], latest[name] = -last, last
        for name, end in latest.items():
            given = getattr(self, name)
            given = [start for start, _ in given] if name == "phases" else given
            times = [given] if isinstance(given, int) else given or ()
            wrong = [each for each in times if not earliest[name] <= each <= end]
            if wrong:
                raise ValueError(
                    f"{name} of a run of {count(self.steps, 'step')} must lie between {earliest[name]:,} and {end:,}; "
                    f"{wrong[0]:,} was given"
                )
        return self
