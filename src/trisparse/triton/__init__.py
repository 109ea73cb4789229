"""Backend "triton": the three branches as GPU kernels, forward and backward.

The functions and their arguments are those of `trisparse.chunked`; `sparse_forward` and `sparse_backward` are
the whole op with the gated sum fused in, `sparse_recompute_backward` is its backward from the ids alone, and
`decode_forward` is the whole op against a cache.
"""

from trisparse.triton.compressed_backward import compressed_backward
from trisparse.triton.compressed_forward import compressed_forward
from trisparse.triton.decode import decode_forward
from trisparse.triton.selected_backward import selected_backward
from trisparse.triton.selected_forward import selected_forward
from trisparse.triton.sparse_backward import sparse_backward, sparse_recompute_backward
from trisparse.triton.sparse_forward import compressed_select_forward, sparse_forward
from trisparse.triton.topn import select_blocks
from trisparse.triton.window_backward import window_backward
from trisparse.triton.window_forward import window_forward

__all__ = [
    "compressed_backward",
    "compressed_forward",
    "compressed_select_forward",
    "decode_forward",
    "select_blocks",
    "selected_backward",
    "selected_forward",
    "sparse_backward",
    "sparse_forward",
    "sparse_recompute_backward",
    "window_backward",
    "window_forward",
]
