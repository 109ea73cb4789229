"""Native Sparse Attention for PyTorch: compressed, selected and window attention, weighed by gates."""

from trisparse.api import (
    compressed_attention,
    select_blocks,
    selected_attention,
    sparse_attention,
    window_attention,
)
from trisparse.backends import available_backends
from trisparse.config import SparseConfig
from trisparse.nn import NativeSparseAttention, SparseCache
from trisparse.version import __version__

__all__ = [
    "NativeSparseAttention",
    "SparseCache",
    "SparseConfig",
    "__version__",
    "available_backends",
    "compressed_attention",
    "select_blocks",
    "selected_attention",
    "sparse_attention",
    "window_attention",
]
