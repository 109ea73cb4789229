"""Compressors with weights far from their start, for blocks of all proportions."""

import torch

from trisparse.config import SparseConfig
from trisparse.nn.compressor import Compressor, CompressorKind

KINDS: tuple[CompressorKind, ...] = ("mlp", "linear", "mean")
SIZES = ((4, 2, 4), (4, 4, 8), (9, 3, 9), (8, 2, 16), (2, 1, 3))


def config_of(sizes: tuple[int, int, int]) -> SparseConfig:
    block, stride, select = sizes
    return SparseConfig(compress_block=block, compress_stride=stride, select_block=select)


def trained(kind: CompressorKind, dim: int, config: SparseConfig) -> Compressor:
    """A compressor whose weights all moved away from their start."""
    compressor = Compressor(kind, dim, config).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in compressor.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return compressor
