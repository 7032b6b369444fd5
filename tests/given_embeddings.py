"""Methods whose backbone returns what it is given and whose heads do nothing: their loss is one of embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from stabilitylab import plugins
from stabilitylab.methods import Images

WIDTH, SAMPLES = 5, 7


class Given(nn.Module):
    """Images (N, 1, 1, D) to rows (N, D), times a parameter per coordinate so that there is something to follow."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.num_features = width
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) * self.scale


def method(name: str, **config: Any) -> Any:
    """Return a method in double precision whose momentum encoder stays at other weights than its encoder."""
    kind = plugins.load("methods", name)
    if "momentum" in kind.Config.model_fields:
        config = {"momentum": 1.0, "momentum_schedule": "constant"} | config
    if "dim" in kind.Config.model_fields:
        config = {"dim": WIDTH} | config
    if "hidden" in kind.Config.model_fields:
        config = {"hidden": 3} | config
    torch.manual_seed(0)
    made: Any = kind(kind.Config(**config), Given, Images(20, WIDTH))
    for part in ("projector", "predictor", "momentum_projector"):
        if hasattr(made, part) and name != "directclr":  # whose projector takes the first coordinates
            setattr(made, part, nn.Identity())
    if hasattr(made, "momentum_backbone"):
        with torch.no_grad():
            made.momentum_backbone.scale.copy_(torch.linspace(0.5, 1.5, WIDTH))
    made = made.double().train()
    for holder, buffer in ((getattr(made, "queue", None), "keys"), (made, "bank")):
        if hasattr(holder, buffer):  # of length one in double precision too
            setattr(holder, buffer, normalize(getattr(holder, buffer), dim=1))
    return made


def embeddings(views: int = 2, seed: int = 0, samples: int = SAMPLES) -> list[Tensor]:
    """Return views that belong to each other, as leaves, shape (N, 1, 1, D) each."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(samples, 1, 1, WIDTH, generator=generator, dtype=torch.float64)
    noises = torch.randn(views, *first.shape, generator=generator, dtype=torch.float64)
    return [(first + 0.5 * noise).requires_grad_() for noise in noises]


def keys(made: Any, view: Tensor) -> Tensor:
    """Return what the momentum encoder makes of a view."""
    return (view.flatten(1) * made.momentum_backbone.scale).detach()
