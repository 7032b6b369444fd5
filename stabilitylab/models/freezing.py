"""Parts of a model that keep their initialization."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from stabilitylab.errors import InputError

__all__ = ["freeze"]


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Let the parameters of some modules take no gradient; running statistics of a BatchNorm among them go on.

    Args:
        model: any.
        parts: names of modules or parameters, such as ``patch_embed.proj``.

    Raises:
        InputError: if the model has no such part, or it holds no parameters.
    """
    for part in parts:
        found = [each for name, each in model.named_parameters() if name == part or name.startswith(f"{part}.")]
        if not found:
            above = part
            while "." in above and not any(name.startswith(f"{above}.") for name, _ in model.named_parameters()):
                above = above.rpartition(".")[0]
            prefix = f"{above}." if any(name.startswith(f"{above}.") for name, _ in model.named_parameters()) else ""
            near = dict.fromkeys(
                prefix + name.removeprefix(prefix).split(".")[0]
                for name, _ in model.named_parameters()
                if name.startswith(prefix)
            )
            raise InputError(f"model.frozen names {part!r}, which has no parameters; there are {', '.join(near)}")
        for each in found:
            each.requires_grad_(False)
