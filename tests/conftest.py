"""What every test shares: small models run fastest on one thread, also beside each other."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
