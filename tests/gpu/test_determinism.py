"""The same call gives the same bits: again, in another process, with an empty cache of binaries."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trisparse import SparseConfig

from .calls import draw, everything, forward, grad_like, make_case, same_bits
from .device import pick

ROOT = Path(__file__).parents[2]
FEW_SLOTS = SparseConfig(num_selected=3)
BOUNDS = pick((0, 1, 1900, 4000), (0, 1, 90, 180))
CASES = {
    case.name: case
    for case in (
        make_case("paper", (64, 4), (192, 128), pick(4096, 150)),
        make_case("many rows of a batch", (8, 2), (128, 128), pick(500, 80), batch=pick(60, 3)),
        make_case("eight groups", (32, 8), (128, 128), pick(3001, 150)),
        make_case("one head a group", (4, 4), (64, 64), pick(3000, 150)),
        # each selected block is then read by a third of all queries, block 0 by all
        make_case("few slots", (16, 1), (128, 128), pick(8000, 150), config=FEW_SLOTS),
        make_case("packed", (16, 2), (128, 128), BOUNDS[-1], cu_seqlens=BOUNDS),
    )
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward_repeat_to_the_bit(name, dtype):
    """Guards against a race, and against sums in the order in which programs happen to end."""
    inputs = draw(CASES[name], dtype)
    grad_out = grad_like(inputs)
    first, first_out = everything(inputs, grad_out), forward(inputs)
    differ = sum(same_bits(everything(inputs, grad_out), first) for _ in range(pick(50, 2)))
    assert differ == 0
    differ = sum(same_bits([forward(inputs)], [first_out]) for _ in range(pick(100, 2)))
    assert differ == 0


def fingerprint_of_a_process(cache: Path) -> str:
    """What a fresh process computes, its binaries kept in `cache`."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "gpu.fingerprint"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_processes_agree_to_the_bit(tmp_path):
    """Guards against a choice made by timing, and against binaries that depend on what ran before."""
    cold = fingerprint_of_a_process(tmp_path / "one")
    warm = fingerprint_of_a_process(tmp_path / "one")
    other = fingerprint_of_a_process(tmp_path / "two")
    assert len(cold) == 64
    assert cold == warm == other
