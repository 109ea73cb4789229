"""What a token costs in a cache: bytes read to decode it, beside those that full attention would read."""

from dataclasses import dataclass

import torch

from trisparse.models.configuration import TrisparseConfig


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Keys and values read for one decoded token, over all layers of one row.

    Attributes:
        tokens_read: keys read in a sparse layer, compressed ones included; each comes with a value.
        bytes_read: bytes read in all layers.
        dense_bytes_read: bytes that full attention would read in as many layers.
    """

    tokens_read: int
    bytes_read: int
    dense_bytes_read: int


def footprint(config: TrisparseConfig, length: int, dtype: torch.dtype) -> Footprint:
    """What decoding the last of `length` tokens reads from a cache of `dtype`, by the sizes, unmeasured."""
    assert config.head_dim is not None
    channels = config.head_dim + (config.value_head_dim or config.head_dim)
    token = config.num_key_value_heads * channels * dtype.itemsize
    read = config.sparse_config().tokens_read(length)
    layers = config.attention_of_layers()
    return Footprint(
        tokens_read=read,
        bytes_read=sum(token * (read if kind == "nsa" else length) for kind in layers),
        dense_bytes_read=token * length * len(layers),
    )
