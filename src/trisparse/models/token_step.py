"""Decoding by one program for all steps: on a GPU a CUDA graph, which starts hundreds of kernels at once."""

import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from transformers import StaticCache

from trisparse.backends import choose
from trisparse.invariance import is_batch_invariant
from trisparse.models.batch import check_ids
from trisparse.models.cache import cache_layers, cached_lengths, check_state, take_back
from trisparse.models.modeling import Block
from trisparse.nn.cache import BatchCache

if TYPE_CHECKING:
    from trisparse.models.causal_lm import TrisparseForCausalLM

# runs before a capture, in which Triton compiles and libraries set themselves up
_WARM_UP = 2
# a capture has its stream for itself
_CAPTURE = threading.Lock()


def has_kernels(model: "TrisparseForCausalLM") -> bool:
    """Whether a step of `model` needs nothing of the host, which no graph could hold: on a GPU, by Triton."""
    config, weight = model.config, model.lm_head.weight
    if weight.device.type != "cuda" or "nsa" not in config.attention_of_layers():
        return True
    return choose(config.backend, "cuda", weight.dtype) == "triton"


@cache
def _capture_stream(device: int) -> torch.cuda.Stream:
    """One for each device: libraries keep memory for every stream that they have seen.

    The one that PyTorch takes by itself is of the device that captured first, and records nothing of another.
    """
    return torch.cuda.Stream(device)


class TokenStep:
    """The next token of every row of a static cache, as `model(ids, past_key_values=cache)` would take it.

    On a CUDA device the first call captures the step in a graph; later calls replay it, as long as the cache
    keeps its memory. Elsewhere the same program runs as it is. The cache may be used by other calls between
    the steps: cropped, reordered, extended by a forward.

    Args:
        model: its weights are read by each step, and must stay where they are.
        past_key_values: `StaticCache(config=model.config, max_cache_len=n)` that holds a prompt.

    Raises:
        NotImplementedError: a model on a GPU whose sparse layers have no kernels for steps there.
        TypeError: another cache, or one of another number of layers.
        ValueError: a cache without tokens, or of another attention or other block sizes.
    """

    def __init__(self, model: "TrisparseForCausalLM", past_key_values: StaticCache) -> None:
        if not has_kernels(model):
            raise NotImplementedError(
                f"model: expected one that Triton's kernels take, got backend={model.config.backend!r}, "
                f"{model.lm_head.weight.dtype}; call the model itself"
            )
        if not isinstance(past_key_values, StaticCache):
            raise TypeError(f"past_key_values: expected a StaticCache, got {type(past_key_values).__name__}")
        self._model = model
        self._layers = cache_layers(past_key_values, len(model.model.layers))
        if not cached_lengths(self._layers):
            raise ValueError(
                "past_key_values: expected a cache that holds a prompt; run the model on it first"
            )
        for index, (layer, block) in enumerate(zip(self._layers, model.model.layers, strict=True)):
            check_state(layer, cast(Block, block).attention.new_cache(), index)
        self._lengths: list[int] = []
        self._places: list[int] = []
        device = model.lm_head.weight.device
        # steps in and out of inference mode write to them
        with torch.inference_mode(False):
            self._ids = torch.empty(len(self._states[0].lengths), 1, dtype=torch.int64, device=device)
            self._starts = torch.empty(len(self._ids), dtype=torch.int32, device=device)
        self._replay: Callable[[], Tensor] | None = None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor) -> Tensor:
        """One more token in each row: `input_ids` [B, 1] -> logits [B, V].

        Raises:
            TypeError: ids that are no tensor of integers.
            ValueError: ids of another shape, or a cache that is full, of another dtype than the model, or was
                left broken; it is as before.
            NotImplementedError: the batch-invariant mode on a GPU, where it looks at lengths.
        """
        check_ids(input_ids)
        if input_ids.shape != self._ids.shape:
            raise ValueError(f"input_ids: expected {list(self._ids.shape)}, got {list(input_ids.shape)}")
        if is_batch_invariant() and self._ids.is_cuda:
            raise NotImplementedError(
                "batch_invariant: expected the model's own cached call on a GPU, got a TokenStep"
            )
        lengths = cached_lengths(self._layers)
        self._check_room(lengths)
        self._follow(lengths)
        self._ids.copy_(input_ids)
        everything = slice(None)
        for state in self._states:
            state.expect(everything, 1)
        try:
            logits = self._run()
        except BaseException:
            take_back(self._layers, lengths)
            raise
        for layer in self._layers:
            layer.slots += 1
        for state in self._states:
            state.commit([1] * len(lengths))
        self._starts += 1
        self._lengths = [length + 1 for length in lengths]
        return logits

    @property
    def num_rows(self) -> int:
        """Rows of the batch that it steps."""
        return len(self._ids)

    @property
    def _states(self) -> list[BatchCache]:
        return [cast(BatchCache, layer.state) for layer in self._layers]

    def _check_room(self, lengths: list[int]) -> None:
        capacity = self._layers[0].capacity
        assert capacity is not None
        if len(lengths) != len(self._ids):
            raise ValueError(f"past_key_values: expected {len(self._ids)} rows, got {len(lengths)}")
        if max(lengths) >= capacity:
            raise ValueError(f"cache: expected at most capacity={capacity} tokens, got {max(lengths) + 1}")

    def _follow(self, lengths: list[int]) -> None:
        """Take up what other calls have changed: rows, or where they lie."""
        buffers = [buffer for state in self._states for buffer in state.buffers.values()]
        places = [buffer.data.data_ptr() for buffer in buffers]
        if places != self._places:
            self._places, self._replay = places, None
        elif lengths == self._lengths:
            return
        self._starts.copy_(torch.tensor(lengths, dtype=torch.int32))
        for state in self._states:
            state.clear_behind()

    def _program(self) -> Tensor:
        """From `_ids` and `_starts` to logits [B, V], by the device alone."""
        hidden = self._model.model.embed(self._ids)
        for block, state in zip(self._model.model.layers, self._states, strict=True):
            hidden = cast(Block, block).step(hidden, state, self._starts)
        return self._model.lm_head(self._model.model.norm(hidden))[:, 0]

    def _run(self) -> Tensor:
        if self._ids.device.type != "cuda":
            return self._program()
        # streams and graphs belong to the current device, which need not be the model's
        with torch.cuda.device(self._ids.device):
            if self._replay is None:
                self._replay = self._captured()
            # the next step writes over it
            return self._replay().clone()

    def _captured(self) -> Callable[[], Tensor]:
        """The program as a graph. It does the same as often as it runs, until `_starts` moves on."""
        graph, side = torch.cuda.CUDAGraph(), _capture_stream(torch.cuda.current_device())
        with _CAPTURE:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    self._program()
            torch.cuda.current_stream().wait_stream(side)
            # other threads may go on allocating
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                logits = self._program()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay
