"""Two workers on two cores: one thread each, or their thread pools wait for one another."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
