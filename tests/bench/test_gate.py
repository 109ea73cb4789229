"""The gate lets the right backend through and stops each wrong one."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trisparse import api
from trisparse.bench import gate
from trisparse.bench.cases import Case
from trisparse.bench.contender import contender
from trisparse.bench.gate import Gate, Verdict, error_ratio

from .small import CASE, WRONG, doubled_gradients, worst_ids

CPU = torch.device("cpu")


def judge(name: str = "torch", *, dtype: torch.dtype = torch.float32, gradients: bool = False) -> Verdict:
    return Gate(CPU).judge(contender(name), replace(CASE, dtype=dtype), gradients=gradients)


@pytest.fixture(params=[1024, 48], ids=["whole", "sampled"], autouse=True)
def whole_tokens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs with all rows compared, and with most of the sequence seen by sampled rows only."""
    monkeypatch.setattr(gate, "WHOLE_TOKENS", request.param)


@pytest.mark.parametrize("name", ["torch", "sdpa", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gradients", [False, True])
def test_right_backend_passes(name: str, dtype: torch.dtype, gradients: bool) -> None:
    """A gate that turns right results away would leave a table of red crosses."""
    assert judge(name, dtype=dtype, gradients=gradients).passed


def test_full_attention_in_float32_passes_where_its_roundings_show() -> None:
    """Guards a red cross at PyTorch: its d value may be 12 times as far off as the reference's."""
    case = Case(tokens=2048, dtype=torch.float32)
    assert Gate(CPU).judge(contender("sdpa"), case, gradients=True).passed


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wrong_output_fails(
    wrong: Callable[..., Tensor], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scaled output, swapped heads, a window off by one, one NaN: each must be seen, in bf16 too."""
    monkeypatch.setattr(api, "sparse_attention", wrong)
    assert not judge(dtype=dtype).passed


def test_wrong_gradient_fails_only_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward that nobody checked would be timed and published."""
    monkeypatch.setattr(api, "sparse_attention", doubled_gradients)
    assert judge().passed
    assert not judge(gradients=True).passed


def test_wrong_blocks_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference reads the contender's own blocks: without a check of these, any blocks would pass."""
    monkeypatch.setattr(api, "select_blocks", worst_ids)
    verdict = judge()
    assert 1 < verdict.worst_ratio < math.inf


@pytest.mark.parametrize(
    "spoil",
    [lambda ids: ids.flip(-1), lambda ids: ids * 0, lambda ids: ids + 1],
    ids=["order", "repeats", "shift"],
)
def test_malformed_ids_fail(spoil: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids out of order, repeated or in the future can have fine scores all the same."""
    select = api.select_blocks
    monkeypatch.setattr(api, "select_blocks", lambda *given, **options: spoil(select(*given, **options)))
    assert judge().worst_ratio == math.inf


def test_ratio_follows_the_budget() -> None:
    """k * max|low - gold| + 2 eps max|gold|, with k = 2, 3 for gradients, 10 in fp32."""
    gold = torch.tensor([1.0, 0.5], dtype=torch.float64)
    low = torch.tensor([1.0, 0.53125], dtype=torch.bfloat16)
    actual = torch.tensor([1.0, 0.5625], dtype=torch.bfloat16)
    eps = 2**-8
    assert error_ratio(actual, low, gold) == pytest.approx(0.0625 / (2 * 0.03125 + 2 * eps))
    assert error_ratio(actual, low, gold, gradient=True) == pytest.approx(0.0625 / (3 * 0.03125 + 2 * eps))
    wide = 10 * 0.03125 + 2 * 2**-24
    assert error_ratio(actual.float(), low.float(), gold) == pytest.approx(0.0625 / wide)


def test_other_shape_dtype_or_specials_are_infinitely_wrong() -> None:
    """NaN compares false with everything and broadcasting hides a shape: both could slip through."""
    gold = torch.tensor([[1.0, math.inf]], dtype=torch.float64)
    low = gold.float()
    assert error_ratio(low, low, gold) == 0
    assert error_ratio(low[0], low, gold) == math.inf
    assert error_ratio(low.half(), low, gold) == math.inf
    assert error_ratio(-low, low, gold) == math.inf
    assert error_ratio(torch.full_like(low, math.nan), low, gold) == math.inf


def test_reference_that_overflows_allows_nothing() -> None:
    """Guards against a number that nothing is compared with, which passed whatever it was."""
    gold = torch.tensor([0.5, 0.25], dtype=torch.float64)
    for low in (torch.tensor([0.5, math.nan]), torch.full((2,), math.inf)):
        assert error_ratio(gold.float(), low, gold) == 0
        assert error_ratio(torch.tensor([0.5, 1e9]), low, gold) > 1
