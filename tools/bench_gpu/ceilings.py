"""What this GPU can do at most: measured before anything else, because data sheets are optimistic."""

from collections.abc import Iterator

import torch
from clock import Clock


def ceilings(clock: Clock, device: str, small: bool) -> Iterator[tuple[str, float, str]]:
    """(what, how much, unit): a large copy, a sum of as many bytes, a large bf16 product."""
    size = 2**20 if small else 2**32
    yield "copy", _copy_rate(clock, device, size), "GB/s"
    yield "read", _read_rate(clock, device, size), "GB/s"
    side = 256 if small else 8192
    yield f"bf16 product {side}", _product_rate(clock, device, side), "TFLOP/s"


def _copy_rate(clock: Clock, device: str, size: int) -> float:
    """Gigabytes a second, every byte counted when it is read and when it is written."""
    source = torch.empty(size, dtype=torch.int8, device=device).random_(0, 100)
    target = torch.empty_like(source)
    best = min(clock.time({"copy": lambda: target.copy_(source)}, 20, 5.0)["copy"])
    return 2 * size / (best * 1e6)


def _read_rate(clock: Clock, device: str, size: int) -> float:
    """Gigabytes a second."""
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    best = min(clock.time({"read": source.sum}, 20, 5.0)["read"])
    return size / (best * 1e6)


def _product_rate(clock: Clock, device: str, side: int) -> float:
    """10**12 floating-point operations a second."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = min(clock.time({"product": lambda: left @ right}, 20, 5.0)["product"])
    return 2 * side**3 / (best * 1e9)
