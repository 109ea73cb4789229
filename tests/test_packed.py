"""A document in a packed sequence is computed as if it were alone, to the last bit."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from agreement import attend, cancelling, ids_of

import trisparse
from trisparse.testing.budget import assert_within_budget
from trisparse.testing.inputs import PACKED_CASES, device_of, make_inputs, usable_backends

BY_NAME = {case.name: case for case in PACKED_CASES}
NAMES = list(BY_NAME)


def documents(case):
    """Slices of the tokens and of the compressed blocks of each document that is not empty."""
    first = 0
    for start, stop in pairwise(case.cu_seqlens):
        count = case.config.num_compressed(stop - start)
        if stop > start:
            yield slice(start, stop), slice(first, first + count)
        first += count


def alone(inputs, tokens, blocks):
    """One document as a call of its own."""
    cuts = (tokens, blocks, blocks, tokens, tokens, tokens, tokens, tokens)
    return replace(inputs, cu_seqlens=None).with_tensors(
        tuple(
            x[:, cut].detach().clone().requires_grad_() for x, cut in zip(inputs.tensors, cuts, strict=True)
        )
    )


def gradients_in_fp64(inputs, grad):
    """Of the reference, with the blocks that it selects in the inputs' dtype."""
    wide = inputs.to(torch.float64).leaves()
    out = attend("whole", wide, ids_of(inputs, "reference"), "reference")[0]
    return torch.autograd.grad(out, wide.tensors, grad.double(), materialize_grads=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", usable_backends(torch.float32))
@pytest.mark.parametrize("name", NAMES)
def test_packed_documents_equal_each_alone(name, backend, dtype):
    """Guards against documents that see one another, forward or backward, and blocks that span two."""
    case = BY_NAME[name]
    inputs = make_inputs(case, dtype, 4).to(device_of(backend)).leaves()
    grad = make_inputs(case, dtype, 5).selected[1].repeat_interleave(2, dim=2).to(inputs.query)
    packed = trisparse.sparse_attention(*inputs.all_arguments, backend=backend, **inputs.where)
    grads = torch.autograd.grad(packed, inputs.tensors, grad)
    seen = [torch.zeros(x.shape[1], dtype=torch.bool) for x in inputs.tensors]
    for tokens, blocks in documents(case):
        single = alone(inputs, tokens, blocks)
        out = trisparse.sparse_attention(*single.all_arguments, backend=backend)
        assert torch.equal(packed[:, tokens], out)
        cuts = (tokens, blocks, blocks, tokens, tokens, tokens, tokens, tokens)
        single_grads = torch.autograd.grad(out, single.tensors, grad[:, tokens])
        if backend == "reference":
            gold = gradients_in_fp64(single, grad[:, tokens])
        for index, (got, wanted, cut) in enumerate(zip(grads, single_grads, cuts, strict=True)):
            if backend == "reference":
                # it adds the branches' shares of a gradient in an order of autograd's choosing
                terms = cancelling(single) if index in (0, 1, 3, 5) else 0.0
                assert_within_budget(
                    f"gradient {index}", got[:, cut], wanted, gold[index], gradient=True, cancelling=terms
                )
            else:
                assert torch.equal(got[:, cut], wanted), index
            seen[index][cut] = True
    assert all(mask.all() for mask in seen)


@pytest.mark.parametrize("backend", usable_backends(torch.float32))
@pytest.mark.parametrize("name", NAMES)
def test_packed_ids_count_from_the_documents_first_block(name, backend):
    """Guards against ids that count from the start of the packed sequence."""
    case = BY_NAME[name]
    inputs = make_inputs(case, torch.float32, 4).to(device_of(backend))
    key, config = inputs.compressed[0], inputs.config
    ids = trisparse.select_blocks(inputs.query, key, config, backend=backend, **inputs.where)
    out, lse = trisparse.compressed_attention(
        inputs.query, *inputs.compressed, config, backend=backend, **inputs.where
    )
    assert ids.shape == (1, case.tokens, 2, 3)
    for tokens, blocks in documents(case):
        query = inputs.query[:, tokens]
        own = trisparse.select_blocks(query, key[:, blocks], config, backend=backend)
        out_alone, lse_alone = trisparse.compressed_attention(
            query, key[:, blocks], inputs.compressed[1][:, blocks], config, backend=backend
        )
        assert torch.equal(ids[:, tokens], own)
        assert torch.equal(out[:, tokens], out_alone)
        assert torch.equal(lse[:, tokens], lse_alone)


@pytest.mark.parametrize("start", [0, 2, 3, 40, 66, 67, 74, 75])
@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_rows_from_the_middle_of_a_packed_sequence(backend, start):
    """Guards against `query_start` read as a position in the first document."""
    inputs = make_inputs(BY_NAME["one_long_many_short"], torch.float32, 4).to(device_of(backend))
    whole = trisparse.sparse_attention(*inputs.all_arguments, backend=backend, **inputs.where)
    chunk = inputs.with_tensors((inputs.query[:, start:], *inputs.tensors[1:-1], inputs.gates[:, start:]))
    rows = trisparse.sparse_attention(
        *chunk.all_arguments, backend=backend, cu_seqlens=inputs.cu_seqlens, query_start=start
    )
    here = inputs.to("cpu").to(torch.float64)
    gold = attend("whole", here, ids_of(inputs, backend).cpu(), "reference")[0]
    assert_within_budget("rows", rows, whole[:, start:], gold[:, start:])
