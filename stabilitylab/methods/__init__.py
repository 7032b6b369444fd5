"""Self-supervised methods, one file each, found by its file name: a class ``Method`` with its ``Config``.

``Method(config, make_backbone, images)`` is a module with a ``backbone``, whose ``forward(views, progress, indices,
labels)`` returns an `Output`, and whose ``encode(images)`` returns its named outputs for the probes. It may have
``encode_momentum``, tell ``diagnostics`` of itself, and say in ``settings`` in what it differs from a preset.
"""

from __future__ import annotations

from stabilitylab.methods._exchange import Images, MakeBackbone, Output

__all__ = ["Images", "MakeBackbone", "Output"]
