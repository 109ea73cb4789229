"""The peak of a call is what it held, and not what it gave back before."""

import pytest
import torch

from trisparse.bench import attention
from trisparse.bench.peak import CAN_TELL, peak_bytes

from .small import SIZES

MIB = 2**20
needs_peaks = pytest.mark.skipif(not CAN_TELL, reason="this system does not say what the peak was")


def held(megabytes: int) -> torch.Tensor:
    """Memory that was written to: pages that nobody touched are nobody's."""
    return torch.ones(megabytes * MIB, dtype=torch.uint8)


@needs_peaks
def test_most_that_was_held_at_once():
    """Guards against a measure that sees nothing, adds up what came and went, or knows an earlier peak."""

    def call() -> torch.Tensor:
        for _ in range(3):
            held(64)
        return held(32)

    del_later = held(128)
    del del_later
    for _ in range(2):
        peak = peak_bytes(call, torch.device("cpu"))
        assert peak is not None
        assert 60 * MIB < peak < 80 * MIB


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
