"""Without a CUDA device one test says so, and the others are not collected."""

from pathlib import Path

import pytest

from .device import HAS_GPU, REHEARSAL


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    if HAS_GPU or REHEARSAL or not collection_path.name.startswith("test_"):
        return None
    return collection_path.name != "test_device.py"


@pytest.fixture(autouse=True)
def memory_given_back():
    """Cached memory of a finished test must not make the next one run short."""
    yield
    if HAS_GPU:
        import torch

        torch.cuda.empty_cache()
