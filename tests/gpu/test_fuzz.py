"""Calls by chance: lengths, batches, chunks and documents that nobody thought of, forward and backward."""

import pytest
import torch
from agreement import attend as attend_with
from agreement import cancelling, gradients, ids_of

from trisparse import SparseConfig
from trisparse.bench.chosen import selection_ratio
from trisparse.testing.budget import assert_within_budget

from .calls import attend, draw, make_case
from .device import BACKEND, pick

SMALL = SparseConfig(
    compress_block=16, compress_stride=8, select_block=32, num_selected=4, num_local=1, window=50
)
# the paper's, but such that 900 tokens are not all selected
FEW_SLOTS = SparseConfig(num_selected=5)
# few shapes, for each has binaries of its own: (H, G), (D, E), block sizes
SHAPES = {
    "paper": ((32, 2), (192, 128), FEW_SLOTS),
    "square": ((16, 1), (128, 128), SMALL),
    "small groups": ((8, 2), (64, 64), SMALL),
    "one head a group": ((3, 3), (128, 64), SMALL),
    "three heads a group": ((6, 2), (60, 100), FEW_SLOTS),
    "narrow": ((2, 1), (16, 24), SMALL),
}
# most of a test is the compilation of kernels for lengths and alignments that seeds bring: parts of a shape's
# examples run beside one another
PARTS, EXAMPLES = pick(4, 1), pick(10, 3)
LONGEST = pick(900, 120)


def example(shape, seed):
    """A whole sequence, rows from the middle on, or documents."""
    heads, dims, config = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)

    def below(number):
        return int(torch.randint(number, (), generator=generator))

    # short ones are as likely as long ones
    tokens = 1 + int(LONGEST ** float(torch.rand((), generator=generator)))
    kind = below(3)
    if kind == 0:
        return make_case(f"seed {seed}", heads, dims, tokens, batch=1 + below(3), config=config)
    if kind == 1:
        start = below(tokens)
        return make_case(f"seed {seed}", heads, dims, tokens, query_start=start, config=config)
    cuts = sorted(below(tokens + 1) for _ in range(below(6)))
    return make_case(f"seed {seed}", heads, dims, tokens, cu_seqlens=(0, *cuts, tokens), config=config)


# gradients of fewer rows are compared in fp32 alone: a softmax's backward subtracts what was rounded to bf16
# from what was not, and with two keys in sight little more than that rounding is left
ENOUGH_ROWS = pick(256, 64)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_call_by_chance_agrees_with_the_reference(shape, dtype, part):
    """Guards against a mask, an edge or an offset that only some lengths show; the seed is in the message."""
    for seed in range(part * EXAMPLES, (part + 1) * EXAMPLES):
        case = example(shape, seed)
        inputs = draw(case, dtype, seed).leaves()
        ids = ids_of(inputs, BACKEND)
        if case.cu_seqlens is None:
            key = inputs.compressed[0].detach()
            assert selection_ratio(ids, inputs.query.detach(), key, case.config, case.query_start) <= 1.0, (
                seed
            )
        wide = inputs.to(torch.float64).leaves()
        outs = [attend(inputs), *(attend_with("whole", each, ids, "reference")[0] for each in (inputs, wide))]
        assert_within_budget(case.name, *(out.detach() for out in outs), seed=seed)
        grads = [gradients([out], each, seed) for out, each in zip(outs, (inputs, inputs, wide), strict=True)]
        assert all(grad.isfinite().all() for grad in grads[0]), seed
        if dtype == torch.float32 or inputs.query.shape[1] >= ENOUGH_ROWS:
            check_gradients(case.name, inputs, grads)


def check_gradients(name, inputs, grads):
    for place, (got, low, gold) in enumerate(zip(*grads, strict=True)):
        # no compressed block: nothing depends on its key
        if gold is None:
            assert not got.any(), (name, place)
            continue
        terms = cancelling(inputs) if place in (0, 1, 3, 5) else 0.0
        title = f"{name}, gradient {place}"
        assert_within_budget(title, got, low, gold, gradient=True, cancelling=terms)
