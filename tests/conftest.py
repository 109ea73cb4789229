"""Two workers on two cores: one thread each, or their thread pools wait for one another."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Triton reads TRITON_INTERPRET when its kernels are imported: those tests are a run of their own
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["triton_interpreter"]
