"""The most memory that a call holds, as the system counts it: the kernels' own memory is not torch's."""

import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# on other systems nothing says what the peak was
CAN_TELL = os.access(_RESET, os.W_OK)


def _status(field: str) -> int:
    """Bytes, from a line of this process's status."""
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


class Peak:
    """The most bytes that this process held since a moment, beyond those of that moment.

    Raises:
        OSError: not `CAN_TELL`.
    """

    def __init__(self) -> None:
        gc.collect()
        # freed memory that the C library still holds would be taken again unseen
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
        _RESET.write_text("5", encoding="ascii")
        self.before = _status("VmRSS")

    def grown(self) -> int:
        """Those bytes, until now."""
        return max(0, _status("VmHWM") - self.before)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Call once -> the most bytes held beyond what was there before, the result included; None: unknown."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not CAN_TELL:
        call()
        return None
    peak = Peak()
    call()
    return peak.grown()
