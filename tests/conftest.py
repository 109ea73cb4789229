"""Two workers on two cores: one thread each, or their thread pools wait for one another."""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# Triton reads TRITON_INTERPRET when its kernels are imported: those tests are a run of their own
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["triton_interpreter"]


@pytest.fixture(autouse=True)
def spoiled_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New memory of torch is full of NaN, or of the largest integer: a result that nobody wrote shows."""
    if torch.cuda.is_available():
        # products of PyTorch's on a GPU then ask for settings of their own
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    # fills only then
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
