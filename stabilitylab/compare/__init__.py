"""Groups of runs side by side: differences with intervals, and what may be claimed of them."""

from stabilitylab.compare.comparison import DEFAULT, Comparison, compare

__all__ = ["DEFAULT", "Comparison", "compare"]
