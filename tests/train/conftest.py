"""A small text, a model of a few thousand weights, and runs of a second."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trisparse.train.recipe import Recipe

MODEL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "nsa_compress_block": 8,
    "nsa_compress_stride": 4,
    "nsa_select_block": 8,
    "nsa_num_selected": 3,
    "nsa_window": 8,
}

# 12 windows of 32 tokens to train on: an epoch is 6 batches of 2
TRAINING_BYTES = 390


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and other tests run beside these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file; its last tenth or so is held out."""
    folder = tmp_path_factory.mktemp("text")
    lines = [f"{number} plus {number} is {2 * number}, and so on.\n" for number in range(100)]
    whole = "".join(lines).encode()[: TRAINING_BYTES * 10 // 8]
    (folder / "sums.txt").write_bytes(whole)
    return folder


@pytest.fixture
def tiny(text: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Makes a recipe of nine steps on `text`, in a folder of its own, with some fields replaced."""

    def make(**fields: Any) -> Recipe:
        return Recipe(**(tiny_fields(text, tmp_path / "run") | fields))

    return make


def tiny_fields(text: Path, output: Path) -> dict[str, Any]:
    return {
        "output": str(output),
        "data": str(text),
        "context_length": 32,
        "batch_size": 2,
        "steps": 9,
        "warmup_steps": 2,
        "learning_rate": 1e-2,
        "evaluate_every": 4,
        "evaluate_windows": 2,
        "save_every": 2,
        "model": MODEL,
    }
