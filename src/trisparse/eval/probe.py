"""Looks into the layers of a model that reads a text: how far gates open, which blocks are selected."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from trisparse.eval.forward import device_of, evaluating
from trisparse.nn.probe import Observation, recording

GATE_COLUMNS = ["layer", "head", "branch", "mean"]
SELECTION_COLUMNS = ["layer", "group", "query_block", "key_block", "share"]
# in the order of the last dimension of `gates`
BRANCHES = ("compressed", "selected", "window")

Rows = list[dict[str, str]]


def observe(model: nn.Module, input_ids: Tensor) -> list[Observation]:
    """What each NSA layer of the model does with the tokens `[B, T]`, each row one text.

    Raises:
        ValueError: the model has no layer of NSA, so that nothing is recorded.
    """
    with evaluating(model), recording() as record:
        model(input_ids=input_ids.to(device_of(model)), use_cache=False)
    if not record:
        raise ValueError(
            "model: expected layers of NativeSparseAttention, got none recorded; other attentions have no "
            "gates and select nothing"
        )
    return record


def gate_rows(model: nn.Module, input_ids: Tensor) -> Rows:
    """The mean gate of each layer, head and branch over all tokens: rows of `GATE_COLUMNS`.

    Arguments and errors as in `observe`.
    """
    return gate_rows_of(observe(model, input_ids))


def selection_rows(model: nn.Module, input_ids: Tensor, blocks_per_cell: int = 1) -> Rows:
    """The share of the queries of each block that select each block of keys: rows of `SELECTION_COLUMNS`.

    Arguments and errors as in `observe` and `selection_rows_of`.
    """
    return selection_rows_of(observe(model, input_ids), blocks_per_cell)


def gate_rows_of(record: Iterable[Observation]) -> Rows:
    """`gate_rows` of what has been observed; a layer observed several times counts all its tokens alike."""
    gates_of: dict[int, list[Tensor]] = {}
    for seen in record:
        # one token a row, so that texts of different lengths can be joined
        gates_of.setdefault(seen.layer, []).append(seen.gates.flatten(0, 1))
    rows = []
    for layer, gates in sorted(gates_of.items()):
        for head, means in enumerate(torch.cat(gates).cpu().double().mean(0).tolist()):
            for branch, mean in zip(BRANCHES, means, strict=True):
                cells = [str(layer), str(head), branch, f"{mean:.6f}"]
                rows.append(dict(zip(GATE_COLUMNS, cells, strict=True)))
    return rows


def selection_rows_of(record: Iterable[Observation], blocks_per_cell: int = 1) -> Rows:
    """`selection_rows` of what has been observed. A cell that no query selects has no row, a block's own has.

    Args:
        record: observations; all of one layer have the same number of tokens.
        blocks_per_cell: how many neighbouring blocks, of queries and of keys alike, make one block of the
            rows. Above 1, a share counts the queries that select at least one of the key blocks.

    An id that is -1 or past the last block is no block, and a repeated one counts once. A block of the
    future, which would be a fault of the selection, is kept to be seen.

    Raises:
        ValueError: `blocks_per_cell` below 1.
    """
    if blocks_per_cell < 1:
        raise ValueError(f"blocks_per_cell: expected at least 1, got {blocks_per_cell}")
    seen_of: dict[int, list[Observation]] = {}
    for seen in record:
        seen_of.setdefault(seen.layer, []).append(seen)
    rows = []
    for layer, observations in sorted(seen_of.items()):
        ids = torch.cat([seen.ids for seen in observations]).cpu()
        shares = selection_shares(ids, observations[0].select_block, blocks_per_cell)
        rows += _share_rows(layer, shares)
    return rows


def selection_shares(ids: Tensor, select_block: int, blocks_per_cell: int = 1) -> Tensor:
    """Ids `[B, T, G, S]` as shares, float64 `[G, query blocks, key blocks]`; see `selection_rows_of`."""
    width = select_block * blocks_per_cell
    blocks, cells = -(-ids.shape[1] // select_block), -(-ids.shape[1] // width)
    shares = [
        _shares_of_queries(queries, blocks, cells, blocks_per_cell) for queries in ids.split(width, dim=1)
    ]
    return torch.stack(shares, dim=1)


def _shares_of_queries(ids: Tensor, blocks: int, cells: int, blocks_per_cell: int) -> Tensor:
    """Of the queries in `ids` `[B, t, G, S]`, the share that selects each cell: `[G, cells]`."""
    is_block = (ids >= 0) & (ids < blocks)
    # one column too many, which takes what is no block and is then cut off
    places = torch.where(is_block, ids.long() // blocks_per_cell, cells)
    hits = torch.zeros(*ids.shape[:3], cells + 1, dtype=torch.bool).scatter_(3, places, True)
    return hits[..., :cells].double().mean((0, 1))


def _share_rows(layer: int, shares: Tensor) -> Rows:
    blocks = torch.arange(shares.shape[1])
    # a block's own cell is always written: without it an empty selection would vanish from the means
    written = (shares > 0) | (blocks[:, None] == blocks)
    rows = []
    for place in written.nonzero().tolist():
        share = float(shares[tuple(place)])
        cells = [str(layer), *map(str, place), f"{share:.6f}"]
        rows.append(dict(zip(SELECTION_COLUMNS, cells, strict=True)))
    return rows
