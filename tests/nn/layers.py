"""Layers with blocks so small that 30 tokens are sparse already, and weights far from their start."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.nn.attention import NativeSparseAttention
from trisparse.nn.rope import Rope

HIDDEN = 12
BLOCKS = SparseConfig(
    compress_block=4, compress_stride=2, select_block=4, num_selected=3, num_initial=1, num_local=1, window=5
)
# what a layer can be; each entry differs from the paper's in one or two ways
LAYERS: dict[str, dict[str, Any]] = {
    "paper": {},
    "shared": {"shared_kv": True},
    "linear": {"compressor": "linear", "shared_kv": True},
    "mean": {"compressor": "mean"},
    "compressed_unrotated": {"compressed_rope": "none"},
    "shared_unrotated": {"compressed_rope": "none", "shared_kv": True},
    "without_rope": {"rope": None},
    "narrow_values": {"value_dim": 2},
    "wide_values": {"value_dim": 6, "shared_kv": True},
    "wide_window": {
        "config": SparseConfig(compress_block=4, compress_stride=4, select_block=8, num_selected=3)
    },
    "long_blocks": {
        "config": SparseConfig(
            compress_block=9, compress_stride=3, select_block=12, num_selected=2, num_local=1, window=1
        )
    },
}


def make_layer(name: str = "paper", **others: Any) -> NativeSparseAttention:
    """The layer `LAYERS[name]` in fp64: four heads in two groups."""
    torch.manual_seed(0)
    settings = {"config": BLOCKS, "rope": Rope(dim=4)} | LAYERS[name] | others
    layer = NativeSparseAttention(HIDDEN, 4, 2, 4, **settings).double()
    for parameter in layer.parameters():
        # random selections and gates, and a compressor that is no mean any more
        parameter.data += 0.3 * torch.randn_like(parameter)
    return layer


def forced_layer(name: str, dtype: torch.dtype, backend: str) -> NativeSparseAttention:
    """The layer with forced blocks alone: rounding could exchange two others of nearly one score."""
    config = make_layer(name).config
    others: dict[str, Any] = {"config": replace(config, num_selected=config.num_initial + config.num_local)}
    return make_layer(name, backend=backend, **others).to(dtype)


def hidden_of(batch: int, tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, HIDDEN, generator=generator, dtype=torch.float64)
