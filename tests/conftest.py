"""What every test shares: small models run fastest on one thread, also beside each other; and the fixtures."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from image_folders import folder  # noqa: F401 - a fixture
from plot_cases import analyses, million  # noqa: F401 - fixtures
