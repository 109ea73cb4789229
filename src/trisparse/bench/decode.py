"""The decode benchmark: one step over a long cache, sparse and full, as rows of decode.csv."""

from collections.abc import Callable, Sequence
from statistics import median

import torch

from trisparse import backends as known
from trisparse.bench.bandwidth import copy_gigabytes_per_second
from trisparse.bench.cases import dtype_name
from trisparse.bench.decode_case import Cache, DecodeCase, make_caches
from trisparse.bench.decode_contender import DecodeContender, Dense, Sparse, fastest_sdpa
from trisparse.bench.table import environment
from trisparse.bench.timing import time_interleaved
from trisparse.config import SparseConfig
from trisparse.report.measurement import COLUMNS, TIMES
from trisparse.report.rows import Rows

READ = ["tokens_read", "megabytes_read", "gigabytes_per_second", "copy_gigabytes_per_second"]
DECODE_COLUMNS = [*COLUMNS, "form", "new_tokens", "caches", *READ]


def run(
    lengths: Sequence[int],
    *,
    batches: Sequence[int] = (1,),
    heads: int = 64,
    groups: int = 4,
    head_dim: int = 128,
    value_dim: int = 128,
    new_tokens: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    backend: str = "auto",
    samples: int = 25,
    seconds_per_case: float = 20.0,
    config: SparseConfig | None = None,
    device: torch.device | str = "cpu",
    on_row: Callable[[dict[str, str]], None] | None = None,
) -> Rows:
    """Time one decode step per length and batch size: NSA, full attention by our kernels, and by PyTorch's.

    "sdpa" is PyTorch's scaled_dot_product_attention in the form that is fastest for the case; "dense" is full
    attention by the kernels of `backend`, as honest a comparison for them. All are checked against the fp64
    reference first; one that fails gets no time. Caches are taken in turns, so that none is in the
    processor's cache. The step is the attention alone, with scoring and selection: without projections,
    rotary embedding, compressor, and the new tokens' way into the cache.

    Args:
        lengths: tokens of a row, the new ones included.
        batches: rows in a step.
        new_tokens: tokens of each row in a step.
        samples, seconds_per_case: a case is timed that often, or until that time is spent.
        on_row: called with each row as soon as there is one.

    Returns:
        Rows with DECODE_COLUMNS, "decode" as their direction.

    Raises:
        TypeError, ValueError: an argument is wrong.
        NotImplementedError: a backend that cannot run here.
    """
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    place = torch.device(device)
    chosen = known.choose(backend, place.type, dtype)
    cases = [
        DecodeCase(
            tokens=tokens,
            batch=batch,
            heads=heads,
            groups=groups,
            head_dim=head_dim,
            value_dim=value_dim,
            new_tokens=new_tokens,
            dtype=dtype,
            config=config or SparseConfig(),
        )
        for batch in batches
        for tokens in lengths
    ]
    speed = copy_gigabytes_per_second(place)
    rows: Rows = []
    for case in cases:
        for row in _measure(case, chosen, place, samples, seconds_per_case, speed):
            rows.append(row)
            if on_row:
                on_row(row)
    return rows


@torch.no_grad()
def _measure(
    case: DecodeCase, backend: str, device: torch.device, samples: int, seconds: float, copy_speed: float
) -> Rows:
    caches = make_caches(case, device)
    contenders: list[DecodeContender] = [fastest_sdpa(caches, case, device), Dense(backend), Sparse(backend)]
    ratios = {each.name: each.worst_ratio(caches[0], case) for each in contenders}
    calls = {each.name: _turns(each, caches, case) for each in contenders if ratios[each.name] <= 1.0}
    times = time_interleaved(calls, samples, seconds, device=device)
    shared = {
        "case": case.name,
        "direction": "decode",
        **{name: str(getattr(case, name)) for name in ("tokens", "heads", "groups", "head_dim", "value_dim")},
        "dtype": dtype_name(case.dtype),
        "batch": str(case.batch),
        "new_tokens": str(case.new_tokens),
        "caches": str(len(caches)),
        "copy_gigabytes_per_second": f"{copy_speed:.1f}",
        **environment(device),
    }
    return [_row(each, case, shared, ratios[each.name], times.get(each.name, [])) for each in contenders]


def _turns(each: DecodeContender, caches: Sequence[Cache], case: DecodeCase) -> Callable[[], object]:
    """A call that takes another cache each time."""
    turns = iter(range(10**9))
    return lambda: each.attend(caches[next(turns) % len(caches)], case)


def _row(
    each: DecodeContender,
    case: DecodeCase,
    shared: dict[str, str],
    ratio: float,
    seconds: Sequence[float],
) -> dict[str, str]:
    """One row of the table; no times stand beside a red gate."""
    spread = (median(seconds), min(seconds), max(seconds)) if seconds else ()
    times = [f"{1000 * time:.4f}" for time in spread] or [""] * len(TIMES)
    tokens = each.tokens_read(case)
    size = case.bytes_of(tokens)
    row = {
        **shared,
        "backend": each.name,
        "form": each.form,
        "instructions": each.instructions(case.dtype),
        **dict(zip(TIMES, times, strict=True)),
        "samples": str(len(seconds)),
        "gate": "pass" if seconds else "fail",
        "worst_ratio": f"{ratio:.3g}",
        "tokens_read": str(tokens),
        "megabytes_read": f"{size / 1e6:.3f}",
        "gigabytes_per_second": f"{size / spread[0] / 1e9:.2f}" if spread else "",
    }
    return {column: row[column] for column in DECODE_COLUMNS}
