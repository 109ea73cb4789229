"""Backend "torch": the three branches in linear memory, forward and backward, on any device."""

from trisparse.chunked.compressed import (
    compressed_backward,
    compressed_forward,
    compressed_select_forward,
    select_blocks,
)
from trisparse.chunked.selected import selected_backward, selected_forward
from trisparse.chunked.window import window_backward, window_forward

__all__ = [
    "compressed_backward",
    "compressed_forward",
    "compressed_select_forward",
    "select_blocks",
    "selected_backward",
    "selected_forward",
    "window_backward",
    "window_forward",
]
