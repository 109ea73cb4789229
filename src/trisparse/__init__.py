"""Native Sparse Attention for PyTorch: compressed, selected and window attention, weighed by gates."""

import importlib
from typing import TYPE_CHECKING, Any

from trisparse.version import __version__

if TYPE_CHECKING:
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

# importing torch takes a second, and `trisparse --help` needs none of these
_HOMES = {
    "NativeSparseAttention": "trisparse.nn",
    "SparseCache": "trisparse.nn",
    "SparseConfig": "trisparse.config",
    "available_backends": "trisparse.backends",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'trisparse' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "trisparse.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
