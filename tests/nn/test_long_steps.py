"""Many new tokens in one step of ragged rows, as guesses to be verified or the end of a prompt bring them."""

from functools import cache

import pytest
import torch
from torch import Tensor

from trisparse.nn.attention import NativeSparseAttention
from trisparse.nn.cache import SparseCache
from trisparse.testing.budget import assert_within_budget
from trisparse.testing.inputs import usable_backends

from .layers import LAYERS, forced_layer, hidden_of, make_layer

FIRST = 37
# left padding of the prompt: the last row has no token before the first step
SKIPS = [0, 9, FIRST]
# 65: more than the rings take beside what a row still needs
STEPS = [64, 33, 65]
TOKENS = FIRST + sum(STEPS)
BACKENDS = usable_backends(torch.float32)
FEW = ["paper", "shared_unrotated", "long_blocks"]
# the kernels in all layers and dtypes; the others, which are slow, in some
CASES = [
    (backend, name, dtype)
    for backend in BACKENDS
    for name in (LAYERS if backend == "cpu" else FEW)
    for dtype in ((torch.float32, torch.bfloat16) if backend == "cpu" else (torch.float32,))
]


@cache
@torch.no_grad()
def expected(name: str, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """(low, gold) of each row alone and whole."""
    low_layer = forced_layer(name, dtype, "reference")
    gold_layer = forced_layer(name, dtype, "reference").double()
    rows = [hidden_of(3, TOKENS).to(dtype)[row : row + 1, skip:] for row, skip in enumerate(SKIPS)]
    return [(low_layer(row), gold_layer(row.double())) for row in rows]


def check(name: str, dtype: torch.dtype, out: Tensor) -> None:
    """The first tokens of all rows, against what they are in the whole."""
    stop = out.shape[1]
    for row, skip in enumerate(SKIPS):
        pair = (whole[:, : stop - skip] for whole in expected(name, dtype)[row])
        assert_within_budget(f"{name}, row {row}", out[row : row + 1, skip:], *pair)


def prefilled(layer: NativeSparseAttention, hidden: Tensor) -> tuple[SparseCache, Tensor]:
    cache = layer.new_cache()
    return cache, layer(hidden[:, :FIRST], cache=cache, padding=SKIPS)


def in_long_steps(layer: NativeSparseAttention, hidden: Tensor) -> Tensor:
    cache, out = prefilled(layer, hidden)
    parts = [out, *(layer(chunk, cache=cache) for chunk in hidden[:, FIRST:].split(STEPS, dim=1))]
    assert cache.lengths == [TOKENS - skip for skip in SKIPS]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize(("backend", "name", "dtype"), CASES)
@torch.no_grad()
def test_long_steps_equal_prefill(backend: str, name: str, dtype: torch.dtype) -> None:
    """Guards the rows behind the first tile of a step, and rings that a step fills."""
    hidden = hidden_of(3, TOKENS).to(dtype)
    check(name, dtype, in_long_steps(forced_layer(name, dtype, backend), hidden))


@pytest.mark.parametrize("guesses", [33, 64])
@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_refused_guesses_leave_no_trace(backend: str, name: str, guesses: int) -> None:
    """Guards speculative decoding: every step, all guesses from the first wrong one on are taken back."""
    layer, hidden = forced_layer(name, torch.float32, backend), hidden_of(3, TOKENS).float()
    cache, out = prefilled(layer, hidden)
    parts, start = [out], FIRST
    for step, right in enumerate([0, 1, 20, guesses - 1, guesses]):
        wrong = hidden_of(3, guesses - right, seed=step + 1).float()
        verified = layer(torch.cat([hidden[:, start : start + right], wrong], dim=1), cache=cache)
        cache.crop([length - guesses + right for length in cache.lengths])
        parts.append(verified[:, :right])
        start += right
    check(name, torch.float32, torch.cat(parts, dim=1))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "cpu"])
@torch.no_grad()
def test_long_steps_select_as_the_whole_does(backend: str) -> None:
    """Guards the choice of blocks, which the tests above force, in fp64, where rounding decides none."""
    layer, hidden = make_layer(backend=backend), hidden_of(3, TOKENS)
    rows = in_long_steps(layer, hidden)
    for row, skip in enumerate(SKIPS):
        whole = layer(hidden[row : row + 1, skip:])
        torch.testing.assert_close(rows[row : row + 1, skip:], whole, rtol=1e-9, atol=1e-11)
