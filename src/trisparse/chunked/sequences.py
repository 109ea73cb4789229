"""The independent pieces of a batch: one document and one KV group of one batch row.

Everything in this room works on one such piece at a time, so a row's bits cannot depend on its neighbours in
the batch, and no tensor has a batch or group dimension to multiply its size by.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.documents import split_documents


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """fp64 for fp64 inputs, fp32 for everything narrower (spec 9)."""
    return torch.promote_types(tensor.dtype, torch.float32)


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One piece; its methods give its share of a tensor as a view that can also be written to."""

    batch: int
    group: int
    heads: slice
    rows: slice
    tokens: slice
    blocks: slice
    query_start: int

    def of_heads(self, tensor: Tensor) -> Tensor:
        """[B, Tq, H, ...] -> [Tq, M, ...]"""
        return tensor[self.batch, self.rows, self.heads]

    def of_rows(self, tensor: Tensor) -> Tensor:
        """[B, Tq, G, ...] -> [Tq, ...]"""
        return tensor[self.batch, self.rows, self.group]

    def of_tokens(self, tensor: Tensor) -> Tensor:
        """[B, T, G, ...] -> [T, ...]"""
        return tensor[self.batch, self.tokens, self.group]

    def of_blocks(self, tensor: Tensor) -> Tensor:
        """[B, C, G, ...] -> [C, ...]"""
        return tensor[self.batch, self.blocks, self.group]


def sequences(
    query: Tensor, groups: int, config: SparseConfig, cu_seqlens: Tensor | None, query_start: int
) -> Iterator[Sequence]:
    """The pieces of a call, in a fixed order."""
    heads_per_group = query.shape[2] // groups
    everything = slice(None)
    if cu_seqlens is None:
        places = [(everything, everything, everything, query_start)]
    else:
        documents = split_documents(cu_seqlens, query.shape[1], query_start, config)
        places = [(doc.rows, doc.tokens, doc.blocks, doc.query_start) for doc in documents]
    if query.shape[1] == 0:
        return
    for batch in range(query.shape[0]):
        for rows, tokens, blocks, start in places:
            for group in range(groups):
                yield Sequence(
                    batch=batch,
                    group=group,
                    heads=slice(group * heads_per_group, (group + 1) * heads_per_group),
                    rows=rows,
                    tokens=tokens,
                    blocks=blocks,
                    query_start=start,
                )
