"""The whole op for few new tokens of rows of different length, by the native kernels."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.cpu.problem import BRANCHES, WORD_OF, Problem, Words, with_whole_rows
from trisparse.cpu.run import run_words

# of a step's tensors, in the order of `decode_forward`, and of its results
_PLACES: tuple[str | tuple[str, str], ...] = (
    "query",
    "query_compressed",
    *((branch, part) for branch in BRANCHES for part in ("key", "value")),
    "gates",
    "starts",
    "out",
    "ids",
)
_WORDS = tuple(WORD_OF[place] for place in _PLACES)


def decode_forward(
    *arguments: Any,
) -> tuple[Tensor, Tensor]:
    """The whole op for the newest tokens of rows of different length -> out [B, n, H, E], ids [B, n, G, S].

    Arguments as of the operator: query, query_cmp or None, keys and values of the branches, gates, starts;
    window_ring, config, scale. A row that starts below 0, or ends past the room of its keys, gets 0 and -1.
    """
    *tensors, window_ring, config, scale = arguments
    whole = [None if tensor is None else with_whole_rows(tensor) for tensor in tensors]
    return DecodeCall(whole, window_ring, config, scale)(*whole)


def prepare_decode(*arguments: Any) -> "DecodeCall | None":
    """What does the same for all tensors laid out as these; None where rows must be copied first."""
    *tensors, window_ring, config, scale = arguments
    if any(tensor is not None and with_whole_rows(tensor) is not tensor for tensor in tensors):
        return None
    return DecodeCall(tensors, window_ring, config, scale)


class DecodeCall:
    """A decode step of which nothing but the addresses of its tensors is open."""

    def __init__(self, tensors: Sequence[Any], window_ring: int, config: SparseConfig, scale: float) -> None:
        """`tensors`: those of `decode_forward` in a step, of which nothing is kept."""
        query, query_cmp, key_cmp, value_cmp, key_slc, value_slc, key_win, value_win, gates, starts = tensors
        self._dtype = query.dtype
        self._out_shape = (*query.shape[:3], value_slc.shape[3])
        self._ids_shape = (*query.shape[:2], key_slc.shape[2], config.num_selected)
        room = key_slc.shape[1]
        problem = Problem(query, key_slc.shape[2], value_slc.shape[3], config, scale, None, 0, room=room)
        problem.give_branch("compressed", key=key_cmp, value=value_cmp)
        problem.give_branch("window", key=key_win, value=value_win)
        problem.give_branch("selected", key=key_slc, value=value_slc)
        if window_ring:
            problem.structure.window_ring = key_win.shape[1]
        else:
            problem.structure.tokens = min(key_slc.shape[1], key_win.shape[1])
        if query_cmp is not None:
            problem.give("query_compressed", query_cmp)
        problem.give_starts(starts)
        for name, tensor in zip(("gates", "out", "ids"), (gates, *self._results(query)), strict=True):
            problem.give(name, tensor)
        problem.structure.select = True
        self._words = bytes(problem.words)

    def _results(self, query: Tensor) -> tuple[Tensor, Tensor]:
        return query.new_empty(self._out_shape), query.new_empty(self._ids_shape, dtype=torch.int32)

    def __call__(self, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        """-> out [B, n, H, E], ids [B, n, G, S] for tensors with the shapes, strides and dtypes of that step.

        A row that starts below 0, or ends past the room of its keys, gets 0 and -1.

        Raises:
            MemoryError, RuntimeError: the kernels failed.
        """
        assert tensors[0] is not None
        out, ids = self._results(tensors[0])
        words = Words.from_buffer_copy(self._words)
        for word, tensor in zip(_WORDS, (*tensors, out, ids), strict=True):
            if tensor is not None:
                words[word] = tensor.data_ptr() or ctypes.addressof(words)
        run_words("forward", self._dtype, words)
        return out, ids
