"""What `sparse_decode` must give each row of a batch."""

from dataclasses import replace

import torch
from decoding import Decoding

from trisparse.testing.budget import assert_within_budget, compare_ids, selection_ranks


def check(call: Decoding, out, ids):
    """Each row against the reference on its own tokens, in the inputs' dtype and in fp64."""
    for index, row in enumerate(call.rows):
        wide = row.to(torch.float64)
        ranks = selection_ranks(wide.query, wide.compressed[0], wide.config, query_start=wide.query_start)
        low, _ = call.only(index).run("reference")
        gold_call = wide_row(call, index)
        gold, gold_ids = gold_call.run("reference")
        compare_ids(ids[index : index + 1].cpu(), gold_ids, ranks)
        if torch.equal(ids[index : index + 1].cpu(), gold_ids):
            assert_within_budget(f"row {index}", out[index : index + 1], low, gold)


def wide_row(call: Decoding, index: int) -> Decoding:
    one = call.only(index)
    query, *pairs, gates = one.tensors
    pairs = [tuple(x.double() for x in pair) for pair in pairs]
    return replace(one, tensors=(query.double(), *pairs, gates.double()))
