"""The shapes of decoding that the compile gate covers, as tensors without memory."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.triton.decode_rows import DecodePlace, decode_place
from trisparse.triton.launch import LEAST_WIDTH, assume_memory
from trisparse.triton.shapes import SHAPES, TOKENS, Shape

_BATCH = 16
# one new token; as many as speculative decoding verifies, with which 16 heads fill the rows of a program; as
# many as decoding takes at once, with which one head does
_NEW_TOKENS = (1, 4)
_MOST_NEW_TOKENS = 64


class DecodeCase(NamedTuple):
    """Inputs of a decode call, [16, n, ...], in a room of TOKENS tokens."""

    label: str
    hot: bool
    query: Tensor
    key_cmp: Tensor
    value_cmp: Tensor
    key: Tensor
    value: Tensor
    ids: Tensor
    place: DecodePlace

    @property
    def extreme(self) -> bool:
        """Whether pieces are as short or as long as any, enough for kernels whose rows are no new tokens."""
        return self.query.shape[1] in (1, _MOST_NEW_TOKENS)


def _new_tokens(shape: Shape) -> tuple[int, ...]:
    """Larger groups have the rows of a program filled long before."""
    return _NEW_TOKENS if shape.heads_per_group >= LEAST_WIDTH else (*_NEW_TOKENS, _MOST_NEW_TOKENS)


def decode_cases() -> Iterator[DecodeCase]:
    """Every shape that is not packed; its memory class is assumed until the next one."""
    config = SparseConfig()
    for shape in SHAPES:
        if shape.packed:
            continue
        for new_tokens in _new_tokens(shape):
            query, key, value = (x.expand(_BATCH, -1, -1, -1) for x in shape.tensors(TOKENS))
            query = query[:, :new_tokens]
            blocks = config.num_compressed(TOKENS)
            key_cmp, value_cmp = key[:, :blocks], value[:, :blocks]
            starts = query.new_empty(_BATCH, dtype=torch.int32)
            ids = starts.new_empty(_BATCH, new_tokens, key.shape[2], config.num_selected)
            scale = shape.head_dim**-0.5
            with assume_memory(shape.memory):
                place = decode_place(query, value, starts, TOKENS, config, scale)
                label = f"{shape.label},n{new_tokens}"
                yield DecodeCase(label, shape.hot, query, key_cmp, value_cmp, key, value, ids, place)
