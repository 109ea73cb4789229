"""The shapes of decoding that the compile gate covers, as tensors without memory."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.triton.decode_rows import DecodePlace, decode_place
from trisparse.triton.launch import assume_memory
from trisparse.triton.shapes import SHAPES, TOKENS

_BATCH = 16
# one new token, and as many as speculative decoding verifies
_NEW_TOKENS = (1, 4)


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


def decode_cases() -> Iterator[DecodeCase]:
    """Every shape that is not packed; its memory class is assumed until the next one."""
    config = SparseConfig()
    for shape in SHAPES:
        if shape.packed:
            continue
        for new_tokens in _NEW_TOKENS:
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
