"""Every instruction set that this processor has gives the reference's answer, not only the best one."""

import pytest
import torch
from agreement import (
    BRANCHES,
    BY_NAME,
    SEED,
    attend,
    cancelling,
    drawn,
    expected,
    expected_gradients,
    gold_ids,
    gradients,
    ids_of,
)

import trisparse
from trisparse.cpu.library import library
from trisparse.testing.budget import assert_within_budget, compare_ids, selection_ranks

from .kernels import instruction_sets, needs_kernels

pytestmark = needs_kernels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EACH_CALL = [
    pytest.param(instructions, dtype, name, id=f"{instructions}-{str(dtype).removeprefix('torch.')}-{name}")
    for instructions in instruction_sets()
    for dtype in DTYPES
    for name in BY_NAME
]


@pytest.mark.parametrize(("instructions", "dtype", "name"), EACH_CALL)
def test_forward_of_each_set_agrees_with_the_reference(select, instructions, dtype, name):
    """Guards against a product, mask or exponential that is wrong in one set of instructions only."""
    select(instructions)
    inputs, ids = drawn(name, dtype), gold_ids(name, dtype)
    for branch in BRANCHES[:3]:
        low, gold = expected(name, dtype, branch)
        actual = attend(branch, inputs, ids, "cpu")
        for what, got, one_low, one_gold in zip(("out", "lse"), actual, low, gold, strict=False):
            assert_within_budget(f"{branch} {what}, {name}", got, one_low, one_gold, seed=SEED)


@pytest.mark.parametrize(("instructions", "dtype", "name"), EACH_CALL)
def test_selection_of_each_set_agrees_with_the_reference(select, instructions, dtype, name):
    """Guards against pooling or top-n whose lanes are right for one width of vectors only."""
    select(instructions)
    inputs = drawn(name, dtype)
    actual, gold = ids_of(inputs, "cpu"), gold_ids(name, dtype)
    if inputs.cu_seqlens is not None:
        # scores in fp64 know one document only; without ties there is one right answer
        assert torch.equal(actual, gold)
        return
    wide = inputs.to(torch.float64)
    compare_ids(actual, gold, selection_ranks(wide.query, wide.compressed[0], inputs.config))


@pytest.mark.parametrize(("instructions", "dtype", "name"), EACH_CALL)
def test_backward_of_each_set_agrees_with_the_reference(select, instructions, dtype, name):
    """Guards against a gradient that is wrong in one set of instructions only."""
    select(instructions)
    inputs, ids = drawn(name, dtype).leaves(), gold_ids(name, dtype)
    for branch in BRANCHES[:3]:
        low, gold = expected_gradients(name, dtype, branch)
        actual = gradients(attend(branch, inputs, ids, "cpu"), inputs, SEED)
        for what, (got, one_low, one_gold) in enumerate(zip(actual, low, gold, strict=True)):
            assert (got is None) == (one_gold is None)
            if got is not None:
                # neither d value nor d gates subtracts anything
                terms = cancelling(inputs) if what in (0, 1, 3, 5) else 0.0
                assert_within_budget(
                    f"{branch} gradient {what}, {name}",
                    got,
                    one_low,
                    one_gold,
                    gradient=True,
                    cancelling=terms,
                    seed=SEED,
                )


@pytest.mark.parametrize(("instructions", "dtype", "name"), EACH_CALL)
def test_whole_op_of_each_set_agrees_with_the_reference(select, instructions, dtype, name):
    """Guards against a fused forward or backward that is wrong in one set of instructions only."""
    select(instructions)
    inputs = drawn(name, dtype).leaves()
    low, gold = inputs.leaves(), inputs.to(torch.float64).leaves()
    ids = ids_of(inputs, "cpu")
    outs = [trisparse.sparse_attention(*inputs.all_arguments, backend="cpu", **inputs.where)]
    outs += [attend("whole", given, ids, "reference")[0] for given in (low, gold)]
    assert_within_budget(f"whole, {name}", *outs, seed=SEED)
    calls = zip(outs, (inputs, low, gold), strict=True)
    grads = [gradients([out], given, SEED) for out, given in calls]
    for what, (got, one_low, one_gold) in enumerate(zip(*grads, strict=True)):
        assert_within_budget(
            f"whole gradient {what}, {name}",
            got,
            one_low,
            one_gold,
            gradient=True,
            cancelling=cancelling(inputs) if what in (0, 1, 3, 5) else 0.0,
            seed=SEED,
        )


def test_sets_are_listed_best_first_and_the_portable_one_is_among_them():
    """Guards against a build that lost the set which must work everywhere."""
    order = ("amx", "avx512_bf16", "avx512", "portable")
    found = library().instruction_sets
    assert list(found) == [name for name in order if name in found]
    assert found[-1] == "portable"


def test_set_that_cannot_run_is_refused_and_the_choice_stays(select):
    """Guards against a misspelled set that is silently another one."""
    select("portable")
    with pytest.raises(ValueError, match=r"^'sse9' cannot run here; choose one of .*portable"):
        library().select("sse9")
    assert library().instructions == "portable"
