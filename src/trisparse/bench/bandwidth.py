"""How fast this machine moves memory when nothing is computed."""

from dataclasses import dataclass

import torch

from trisparse.bench.rotation import rotate
from trisparse.bench.timing import time_interleaved

BYTES = 256 * 2**20
# in turns, so that none of them stays in a last-level cache
TENSORS = 4
SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class Bandwidth:
    """Gigabytes per second: `copy` counts bytes read and written, `read` is a sum of fp32 numbers."""

    copy: float
    read: float


def measure_bandwidth(device: torch.device | str = "cpu") -> Bandwidth:
    """The best of some copies and sums of tensors of BYTES bytes."""
    tensors = [torch.ones(BYTES // 4, device=device) for _ in range(TENSORS)]
    sources, targets = tensors[0::2], tensors[1::2]
    copies = [lambda a=a, b=b: b.copy_(a) for a, b in zip(sources, targets, strict=True)]
    functions = {"copy": rotate(copies), "read": rotate([tensor.sum for tensor in tensors])}
    times = time_interleaved(functions, SAMPLES, seconds=10.0, device=device)
    return Bandwidth(copy=2e-9 * BYTES / min(times["copy"]), read=1e-9 * BYTES / min(times["read"]))
