"""Where each document of a packed sequence lies in its query rows, its tokens and its compressed blocks."""

from dataclasses import dataclass

from torch import Tensor

from trisparse.config import SparseConfig


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document's share of a packed sequence.

    Attributes:
        rows: its query rows, a slice of the T dimension of `query`.
        tokens: its tokens, a slice of the T dimension of raw keys and values.
        blocks: its compressed blocks, a slice of the C dimension of compressed keys and values.
        query_start: position of its first query row, counted from its own first token.
    """

    rows: slice
    tokens: slice
    blocks: slice
    query_start: int


def split_documents(
    cu_seqlens: Tensor, num_rows: int, query_start: int, config: SparseConfig
) -> list[Document]:
    """The documents that own at least one of the query rows `query_start .. query_start + num_rows - 1`.

    Reading `cu_seqlens` on a GPU waits for the device; kernels that take packed sequences natively do not
    call this.
    """
    bounds = cu_seqlens.tolist()
    documents = []
    first_block = 0
    for start, stop in zip(bounds, bounds[1:], strict=False):
        num_blocks = config.num_compressed(stop - start)
        first_row = max(start, query_start)
        last_row = min(stop, query_start + num_rows)
        if first_row < last_row:
            documents.append(
                Document(
                    rows=slice(first_row - query_start, last_row - query_start),
                    tokens=slice(start, stop),
                    blocks=slice(first_block, first_block + num_blocks),
                    query_start=first_row - start,
                )
            )
        first_block += num_blocks
    return documents
