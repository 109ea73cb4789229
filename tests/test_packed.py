"""A document in a packed sequence is computed as if it were alone, to the last bit."""

from itertools import pairwise

import pytest
import torch

import trisparse
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
    """The tensors of one document."""
    cuts = (tokens, blocks, blocks, tokens, tokens, tokens, tokens, tokens)
    return inputs.with_tensors(
        tuple(
            x[:, cut].detach().clone().requires_grad_() for x, cut in zip(inputs.tensors, cuts, strict=True)
        )
    )


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
        for index, (got, wanted, cut) in enumerate(zip(grads, single_grads, cuts, strict=True)):
            # the reference adds the branches' shares of a gradient in an order of autograd's choosing
            if backend == "reference":
                # and each partial sum is rounded to the inputs' dtype
                tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
                torch.testing.assert_close(got[:, cut], wanted, rtol=tolerance, atol=tolerance)
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
    torch.testing.assert_close(rows, whole[:, start:], rtol=1e-5, atol=1e-6)
