"""An analysis as one HTML page that needs no network: the verdict first, then what it stands on."""

from __future__ import annotations

from stabilitylab.report.page import page, write

__all__ = ["page", "write"]
