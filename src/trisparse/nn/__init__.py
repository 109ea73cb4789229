"""The layer and its parts: projections, compressor, rope, gates, cache."""

from trisparse.nn.attention import NativeSparseAttention
from trisparse.nn.cache import SparseCache

__all__ = ["NativeSparseAttention", "SparseCache"]
