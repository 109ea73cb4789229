"""What every test of decoding shares: a cache with garbage behind its rows, and what each row is alone."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import trisparse
from trisparse.config import SparseConfig
from trisparse.decode import sparse_decode
from trisparse.testing.budget import assert_within_budget, compare_ids, selection_ranks
from trisparse.testing.inputs import Case, Inputs, make_inputs


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """A batch of rows: each row's own inputs, and the padded tensors that `sparse_decode` takes."""

    rows: list[Inputs]
    tensors: tuple[Any, ...]
    starts: Tensor
    config: SparseConfig
    ring: bool

    def run(self, backend: str, **others: Any) -> tuple[Tensor, Tensor]:
        return sparse_decode(
            *self.tensors, self.starts, self.config, window_ring=self.ring, backend=backend, **others
        )

    def to(self, device: torch.device | str) -> "Decoding":
        """The same call with its tensors on another device."""
        query, *pairs, gates = self.tensors
        pairs = [tuple(x.to(device) for x in pair) for pair in pairs]
        tensors = (query.to(device), *pairs, gates.to(device))
        return replace(self, tensors=tensors, starts=self.starts.to(device))

    def only(self, row: int) -> "Decoding":
        """One row in a batch of its own, in the same room."""
        query, *pairs, gates = self.tensors
        pairs = [tuple(x[row : row + 1].clone() for x in pair) for pair in pairs]
        tensors = (query[row : row + 1], *pairs, gates[row : row + 1])
        return replace(
            self, rows=self.rows[row : row + 1], tensors=tensors, starts=self.starts[row : row + 1]
        )


def make_decoding(
    lengths: list[int],
    new_tokens: int,
    config: SparseConfig,
    *,
    heads: int = 4,
    groups: int = 2,
    head_dim: int = 32,
    value_dim: int = 32,
    dtype: torch.dtype = torch.float32,
    ring: bool = False,
    garbage: float = float("nan"),
    spare: int = 7,
    seed: int = 0,
) -> Decoding:
    """Rows of `lengths` tokens, the last `new_tokens` of them new, in a cache with room for `spare` more."""
    rows = [
        make_inputs(
            Case(
                name="row",
                batch=1,
                tokens=length,
                heads=heads,
                groups=groups,
                head_dim=head_dim,
                value_dim=value_dim,
                config=config,
                query_start=length - new_tokens,
            ),
            dtype,
            seed + index,
        )
        for index, length in enumerate(lengths)
    ]
    room = max(lengths) + spare

    def stack(name: str, part: int, size: int, slot_of: Any) -> Tensor:
        width = value_dim if part else head_dim
        data = torch.full((len(rows), size, groups, width), garbage, dtype=dtype)
        for index, row in enumerate(rows):
            tokens = getattr(row, name)[part][0]
            for position in range(tokens.shape[0]):
                data[index, slot_of(position)] = tokens[position]
        return data

    def pair(name: str, size: int, slot_of: Any = lambda position: position) -> tuple[Tensor, Tensor]:
        return stack(name, 0, size, slot_of), stack(name, 1, size, slot_of)

    slots = -(-(config.window - 1 + new_tokens) // 64) * 64
    window = pair("window", slots, lambda s: s % slots) if ring else pair("window", room)
    tensors = (
        torch.cat([row.query for row in rows]),
        pair("compressed", config.num_compressed(max(lengths)) + spare),
        pair("selected", room),
        window,
        torch.cat([row.gates for row in rows]),
    )
    starts = torch.tensor([length - new_tokens for length in lengths], dtype=torch.int32)
    return Decoding(rows=rows, tensors=tensors, starts=starts, config=config, ring=ring)


def check_rows(call: Decoding, out: Tensor, ids: Tensor) -> None:
    """Each row against the reference on that row alone, with the ids that were chosen."""
    for index, row in enumerate(call.rows):
        wide, chosen = row.to(torch.float64), ids[index : index + 1].cpu()
        place = {"query_start": row.query_start, "backend": "reference"}
        gold_ids = trisparse.select_blocks(wide.query, wide.compressed[0], call.config, **place)
        ranks = selection_ranks(wide.query, wide.compressed[0], call.config, query_start=row.query_start)
        compare_ids(chosen, gold_ids, ranks)
        low, gold = (whole(each, chosen) for each in (row, wide))
        assert_within_budget(f"row {index}", out[index : index + 1].cpu(), low, gold)


def whole(row: Inputs, ids: Tensor) -> Tensor:
    """The op on one row with given ids, by the reference."""
    place: dict[str, Any] = {"query_start": row.query_start, "backend": "reference"}
    out_cmp, _ = trisparse.compressed_attention(row.query, *row.compressed, row.config, **place)
    out_slc = trisparse.selected_attention(row.query, *row.selected, ids, row.config, **place)
    out_win = trisparse.window_attention(row.query, *row.window, row.config, **place)
    return trisparse.api.gated_sum(row.gates, (out_cmp, out_slc, out_win))
