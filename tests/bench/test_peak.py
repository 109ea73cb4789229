"""The peak of a call is what it held, and not what it gave back before."""

import subprocess
import sys

import pytest
import torch

from trisparse.bench import attention
from trisparse.bench.peak import CAN_TELL, peak_bytes

from .small import SIZES

MIB = 2**20
# in a process of its own: what other threads of this one hold meanwhile would count too
MEASURE = """
import torch

from trisparse.bench.peak import peak_bytes


def held(megabytes):
    # memory that was written to: pages that nobody touched are nobody's
    return torch.ones(megabytes * 2**20, dtype=torch.uint8)


def call():
    for _ in range(3):
        held(64)
    return held(32)


held(128)
for _ in range(2):
    print(peak_bytes(call, torch.device("cpu")))
"""
needs_peaks = pytest.mark.skipif(not CAN_TELL, reason="this system does not say what the peak was")


@needs_peaks
def test_most_that_was_held_at_once():
    """Guards against a measure that sees nothing, adds up what came and went, or knows an earlier peak."""
    said = subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True)
    peaks = [int(line) / MIB for line in said.stdout.split()]
    assert len(peaks) == 2
    assert all(60 < peak < 80 for peak in peaks), peaks


@needs_peaks
def test_rows_say_what_was_held():
    """Guards against a column that stays empty."""
    rows = attention.run([64], backends=["torch"], directions=["forward"], **SIZES)
    assert all(float(row["peak_mib"]) >= 0 for row in rows)


def test_unknown_peak_is_no_number(monkeypatch: pytest.MonkeyPatch):
    """Guards against a failure, or a 0, on systems that do not tell."""
    monkeypatch.setattr("trisparse.bench.peak.CAN_TELL", False)
    calls: list[int] = []
    assert peak_bytes(lambda: calls.append(1), torch.device("cpu")) is None
    assert calls == [1]
    rows = attention.run([64], backends=["torch"], directions=["forward"], **SIZES)
    assert [row["peak_mib"] for row in rows] == ["", ""]
