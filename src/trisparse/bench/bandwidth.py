"""How fast this machine moves memory: what a time of a decode step is to be compared with."""

from time import perf_counter

import torch

_BYTES = 256 * 2**20
_REPEATS = 5


def copy_gigabytes_per_second(device: torch.device) -> float:
    """Bytes read and written by the fastest of some copies of a tensor larger than any cache, per second."""
    source = torch.ones(_BYTES // 4, device=device)
    target = torch.empty_like(source)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = []
    for _ in range(_REPEATS):
        wait()
        start = perf_counter()
        target.copy_(source)
        wait()
        seconds.append(perf_counter() - start)
    return 2 * _BYTES / min(seconds) / 1e9
