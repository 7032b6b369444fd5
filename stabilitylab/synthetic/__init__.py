"""Series and whole runs with planted spikes, dips, collapses, lags and couplings, and the truth about them."""

from stabilitylab.synthetic.generation import TRUTH, synthesize, truth_of, write
from stabilitylab.synthetic.noise import Noise, Trend, noise, spike_shape, trend
from stabilitylab.synthetic.parameters import Parameters
from stabilitylab.synthetic.truth import Coupling, Phase, Synthetic

__all__ = [
    "TRUTH",
    "Coupling",
    "Noise",
    "Parameters",
    "Phase",
    "Synthetic",
    "Trend",
    "noise",
    "spike_shape",
    "synthesize",
    "trend",
    "truth_of",
    "write",
]
