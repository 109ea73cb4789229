"""The one test that is collected everywhere: it says why the others of this folder were left out."""

import os

import pytest

import trisparse

from .device import BACKEND, HAS_GPU, REHEARSAL


def test_the_triton_backend_can_run_here():
    """Guards against a GPU run that silently tested something else."""
    if not HAS_GPU and not REHEARSAL:
        pytest.skip("no CUDA device: tests/gpu was left out (make test-gpu runs it on a machine with one)")
    assert os.environ.get("TRITON_INTERPRET") != "1", "the interpreter runs on the CPU"
    assert trisparse.available_backends()[BACKEND] is None
