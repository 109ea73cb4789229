"""Times and peak memory of calls that take turns."""

from collections.abc import Callable, Mapping
from time import perf_counter

import torch

from trisparse.bench.peak import peak_bytes
from trisparse.bench.timing import time_interleaved

# more than the L2 cache of any GPU: what one call leaves there must not serve the next
_FLUSHED_BYTES = 2**28


class CudaClock:
    """Between two events on the device's own time line; the L2 cache is overwritten before each call."""

    def __init__(self) -> None:
        self.buffer = torch.empty(_FLUSHED_BYTES, dtype=torch.int8, device="cuda")

    def time(
        self, calls: Mapping[str, Callable[[], object]], samples: int, seconds: float
    ) -> dict[str, list[float]]:
        """Milliseconds of each call, by name: one untimed round, then A B C A B C ..."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            call()
        torch.cuda.synchronize()
        began = perf_counter()
        for _ in range(samples):
            for name, call in calls.items():
                times[name].append(self._milliseconds(call))
            if perf_counter() - began >= seconds:
                break
        return times

    def _milliseconds(self, call: Callable[[], object]) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.buffer.zero_()
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)

    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        """`call` as a CUDA graph: what replays it. Its kernels must have run before."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        """The most that `call` held beyond what was there before."""
        torch.cuda.empty_cache()
        return peak_bytes(call, torch.device("cuda"))


class RehearsalClock:
    """The same on a CPU, where nothing is learnt from it."""

    def time(
        self, calls: Mapping[str, Callable[[], object]], samples: int, seconds: float
    ) -> dict[str, list[float]]:
        taken = time_interleaved(calls, samples, seconds)
        return {name: [1000 * time for time in some] for name, some in taken.items()}

    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        return call

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        call()
        return None


Clock = CudaClock | RehearsalClock
