"""Decode rows: complete, drawable, cold, in the fastest form, without times where the gate is red."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from trisparse import backends, decode
from trisparse.bench import bandwidth, rotation, step_contender
from trisparse.bench import decode as bench
from trisparse.bench.decode_case import DecodeCase
from trisparse.bench.rotation import COLD_BYTES, MOST_BYTES, MOST_CACHES, caches_needed, rotate
from trisparse.bench.sdpa_forms import FORMS, RAGGED_FORMS
from trisparse.bench.step import dense_step, sparse_step
from trisparse.bench.step_contender import SdpaStep, SparseStep, StepContender, step_contenders
from trisparse.bench.step_gate import judge_step
from trisparse.bench.traffic import sparse_bytes
from trisparse.report import decode as figure
from trisparse.report.measurement import TIMES

from .small import CONFIG, SIZES

CPU = torch.device("cpu")
CASE = DecodeCase(
    tokens=160, heads=4, groups=2, head_dim=16, value_dim=24, dtype=torch.float32, batch=3, config=CONFIG
)

right = decode.sparse_decode


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "BYTES", 4096)
    monkeypatch.setattr(rotation, "MOST_CACHES", 3)


def judge(each: StepContender, case: DecodeCase = CASE, form: str | None = None) -> float:
    step = each.step(case, CPU)
    return judge_step(each, step, case, form or each.forms(case)[0]).worst_ratio


def test_rows_fit_the_columns_and_the_figure():
    """The figure reads what the benchmark writes; a column renamed on one side would break both."""
    seen: list[dict[str, str]] = []
    best = backends.choose("auto", "cpu", SIZES["dtype"])
    rows = bench.run(
        [64, 160], batches=[1, 3], ragged=True, backends=["torch", "sdpa", best], on_row=seen.append, **SIZES
    )
    assert seen == rows
    assert all(list(row) == figure.COLUMNS for row in rows)
    assert [(row["batch"], row["tokens"], row["direction"], row["backend"]) for row in rows] == [
        (batch, tokens, direction, backend)
        for batch in ("1", "3")
        for tokens in ("64", "160")
        for direction in ("decode", "ragged decode")[: int(batch)]
        for backend in dict.fromkeys(("sdpa", "dense", "torch", best))
    ]
    assert {row["gate"] for row in rows} == {"pass"}
    assert {row["caches"] for row in rows} == {"3"}
    assert len(figure.draw(rows).axes) == 2


def test_gigabytes_per_second_are_bytes_over_the_median():
    """160 tokens of 2 groups, 16 + 24 numbers of 4 bytes."""
    sdpa = bench.run([160], backends=["torch"], **SIZES)[0]
    assert sdpa["megabytes_read"] == "0.051"
    expected = 160 * 2 * 40 * 4 / 1e6 / float(sdpa["median_ms"])
    assert float(sdpa["gigabytes_per_second"]) == pytest.approx(expected, abs=0.006, rel=0.02)


def test_wrong_backend_gets_a_red_row_without_times(monkeypatch: pytest.MonkeyPatch):
    """The speed of a wrong result is no speed."""
    monkeypatch.setattr(step_contender, "sparse_decode", scaled)
    sdpa, dense, wrong = bench.run([64], backends=["torch"], **SIZES)
    assert (sdpa["gate"], dense["gate"], wrong["gate"], wrong["samples"]) == ("pass", "pass", "fail", "0")
    assert [wrong[column] for column in (*TIMES, "gigabytes_per_second", "megabytes_read")] == [""] * 5
    figure.draw([sdpa, dense, wrong])


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("new_tokens", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_right_steps_pass_in_every_form(ragged: bool, new_tokens: int, dtype: torch.dtype):
    """A mask off by one, or heads folded in another order, would make the baseline fast and wrong."""
    case = replace(CASE, ragged=ragged, new_tokens=new_tokens, dtype=dtype)
    for each in step_contenders(["torch", "auto"], "cpu", dtype):
        for form in each.forms(case):
            assert judge(each, case, form) <= 1.0, (each.name, form)


def scaled(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    out, ids = right(*arguments, **options)
    return out * 1.05, ids


def wrong_row(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    out, ids = right(*arguments, **options)
    return out.roll(1, dims=0), ids


def window_too_wide(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    *tensors, config = arguments
    return right(*tensors, replace(config, window=config.window + 1), **options)


def by_position(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """A ring that is read one slot late."""
    query, compressed, selected, window, *others = arguments
    return right(query, compressed, selected, tuple(x.roll(1, dims=1) for x in window), *others, **options)


@pytest.mark.parametrize("wrong", [scaled, wrong_row, window_too_wide, by_position])
def test_wrong_output_fails(wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    """Each of these is as fast as the right one."""
    assert judge(SparseStep("torch")) <= 1.0
    monkeypatch.setattr(step_contender, "sparse_decode", wrong)
    assert not judge(SparseStep("torch")) <= 1.0


def test_wrong_ids_fail(monkeypatch: pytest.MonkeyPatch):
    """The reference reads the contender's own blocks: without a check of these, any blocks would pass."""
    each = SparseStep("torch")
    step = each.step(CASE, CPU)
    ids = right(*_arguments(step), window_ring=True, backend="torch")[1]
    monkeypatch.setattr(SparseStep, "select", lambda *_: ids.flip(-1))
    assert judge_step(each, step, CASE, "").worst_ratio == math.inf


def _arguments(step: Any) -> tuple[Any, ...]:
    cache = step.cache
    starts = torch.tensor(CASE.starts, dtype=torch.int32)
    return step.query, cache[0:2], cache[2:4], cache[4:6], step.gates, starts, CONFIG


def test_fastest_form_is_taken(monkeypatch: pytest.MonkeyPatch):
    """A slow form of the baseline is a speed-up for free."""
    times = {"grouped": [3.0, 3.0], "folded": [9.0, 1.0], "repeated": [2.0, 2.0]}
    real = bench.time_interleaved

    def timed(functions: Any, *given: Any, **options: Any) -> Any:
        return times if set(functions) == set(times) else real(functions, *given, **options)

    monkeypatch.setattr(bench, "time_interleaved", timed)
    sdpa, dense, sparse = bench.run([64], backends=["torch"], **SIZES)
    best = backends.choose("auto", "cpu", SIZES["dtype"])
    assert (sdpa["form"], dense["form"], sparse["form"]) == ("folded", best, "")


def test_ragged_rows_may_also_be_called_one_by_one():
    """With a mask, SDPA computes what it then throws away."""
    assert SdpaStep().forms(CASE) == list(FORMS)
    assert SdpaStep().forms(replace(CASE, ragged=True)) == [*FORMS, *RAGGED_FORMS]
    assert replace(CASE, ragged=True).lengths == [53, 106, 160]


def test_calls_rotate_over_caches_of_their_own():
    """A cache that is used twice in a row is read from the processor's cache the second time."""
    calls: list[str] = []
    turn = rotate([lambda name=name: calls.append(name) for name in "ABC"])  # type: ignore[misc]
    for _ in range(5):
        turn()
    assert "".join(calls) == "ABCAB"
    for step in (sparse_step(CASE, CPU), dense_step(CASE, CPU)):
        other = step.elsewhere(CASE, 1)
        assert not torch.equal(other.query, step.query)
        places = {tensor.data_ptr() for each in (step, other) for tensor in each.cache}
        assert len(places) == 2 * len(step.cache)


def test_number_of_caches_follows_bytes_and_memory():
    """Enough to stay cold, no more than memory holds, at least one."""
    assert caches_needed(COLD_BYTES // 4 - 1, 1) == min(5, rotation.MOST_CACHES)
    assert caches_needed(2 * COLD_BYTES, 1) == 1
    assert caches_needed(1, 1) == rotation.MOST_CACHES < MOST_CACHES
    assert caches_needed(COLD_BYTES // 8, MOST_BYTES // 2) == 2
    assert caches_needed(1, 2 * MOST_BYTES) == 1


def test_blocks_that_two_tokens_share_are_read_once():
    """Tokens 158 and 159 of one row and group; block 9 ends at 160, block 0 is shared."""
    case = replace(CASE, batch=1, groups=1, new_tokens=2)
    ids = torch.tensor([[[[0, 9, -1, -1]], [[0, 3, 9, -1]]]])
    tokens = CONFIG.num_compressed(160) + (24 - 1 + 2) + 3 * 16
    assert sparse_bytes(case, ids) == tokens * 40 * 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"backends": ["cuda"]}, "backend: expected"),
        ({"samples": 0}, "samples: expected at least 1, got 0"),
        ({"groups": 3}, "groups: expected a divisor of heads=4, got 3"),
        ({"new_tokens": 0}, r"new_tokens: expected 1 .. 64 at 64 tokens, got 0"),
        ({"new_tokens": 40, "batches": [2], "ragged": True}, r"new_tokens: expected 1 .. 32 at 32 tokens"),
    ],
)
def test_wrong_argument_is_named_before_anything_runs(wrong: dict, message: str):
    """A misspelling found after the first hour of measuring is found too late."""
    with pytest.raises(ValueError, match=message):
        bench.run([64], **SIZES | wrong)
    with pytest.raises(TypeError, match="backends: expected a sequence of names"):
        bench.run([64], **SIZES | {"backends": "cpu"})
