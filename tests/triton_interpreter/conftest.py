"""The kernels run here, in Triton's interpreter or on a GPU: fp32 and fp16, short sequences."""

import os
from pathlib import Path

import pytest
import torch

_HERE = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def runnable_kernels() -> None:
    """Kernels that can run nowhere must not look like a pass."""
    if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
        pytest.fail(
            "tests/triton_interpreter: no GPU, so the kernels need Triton's interpreter; run "
            "TRITON_INTERPRET=1 pytest -n 0 tests/triton_interpreter"
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A GPU says nothing where numpy, in its place, warns of numbers that a mask then drops."""
    for item in items:
        if _HERE in item.path.parents:
            for what in ("overflow", "invalid value"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore:{what} encountered:RuntimeWarning"))
