"""How our decode state travels in a cache of transformers: layer classes, filled at their first use."""

from typing import Any

import torch
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    STATIC_LAYER_TYPE_MAPPING,
    DynamicCache,
    DynamicLayer,
    StaticCache,
)

from trisparse import validate
from trisparse.models.configuration import LAYER_TYPE
from trisparse.nn.cache import BatchCache, SparseCache

_FILLED_ELSEWHERE = "TrisparseCacheLayer: filled by the layer's attention, not by key and value states"
_NO_OFFLOADING = "past_key_values: offloading is not supported by this cache"


class TrisparseCacheLayer(DynamicLayer):
    """Holds a layer's BatchCache and counts slots as transformers does, left padding included."""

    is_croppable = True
    # early initialisation knows only dense keys and values
    supports_early_init = False

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__()
        self.capacity = capacity
        self.state: BatchCache | None = None
        self.slots = 0
        # a forward failed, and its tokens could not be taken back
        self.is_broken = False
        # all layers of the cache, for a crop that one of them must refuse is refused by all
        self.together: list[TrisparseCacheLayer] = [self]

    def lazy_initialization(self, *_: Any) -> None:
        raise NotImplementedError(_FILLED_ELSEWHERE)

    def update(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(_FILLED_ELSEWHERE)

    def get_seq_length(self) -> int:
        return self.slots

    def get_max_length(self) -> int:
        return -1 if self.capacity is None else self.capacity

    def reset(self) -> None:
        self.state, self.slots, self.is_broken = None, 0, False

    def crop(self, tokens_to_remove: int | torch.Tensor) -> None:
        """Take back the last `-tokens_to_remove` tokens of every row, here if every layer can."""
        # transformers 5.17 hands over a tensor
        tokens_to_remove = validate.integer("tokens_to_remove", tokens_to_remove)
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove: expected 0 or a negative number, got {tokens_to_remove}")
        if self.state is None or not tokens_to_remove:
            return
        lengths = [length + tokens_to_remove for length in self.state.lengths]
        for layer in self.together:
            # the cache asks one layer after the other: some have done it
            if layer.state is not None and layer.slots == self.slots:
                layer.state.check_crop(lengths)
        self.state.crop(lengths)
        self.slots += tokens_to_remove

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        if self.state is not None:
            self.state.reorder(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        repeats = validate.integer("repeats", repeats)
        if repeats < 1:
            raise ValueError(f"repeats: expected at least 1, got {repeats}")
        if self.state is not None:
            self.state.reorder([row for row in range(len(self.state.lengths)) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.state is None:
            return
        if isinstance(indices, torch.Tensor) and indices.dtype == torch.bool:
            rows = len(self.state.lengths)
            if indices.shape != (rows,):
                raise ValueError(f"indices: expected a mask of [{rows}], got {list(indices.shape)}")
            indices = indices.nonzero().flatten()
        self.state.reorder(indices)

    def offload(self) -> None:
        raise NotImplementedError(_NO_OFFLOADING)

    def prefetch(self) -> None:
        raise NotImplementedError(_NO_OFFLOADING)


class TrisparseStaticLayer(TrisparseCacheLayer):
    """The same in a StaticCache: room for `max_cache_len` tokens a row at once, and an error beyond."""

    # transformers then asks the model for `get_compiled_call`
    is_compileable = True

    def __init__(self, max_cache_len: int) -> None:
        super().__init__(capacity=max_cache_len)

    def reset(self) -> None:
        """Forget the tokens; their memory stays where it is."""
        if self.state is not None:
            self.state.reset()
        self.slots, self.is_broken = 0, False


# by hand: an attribute that registers a class would be inherited, and the second class replace the first
DYNAMIC_LAYER_TYPE_MAPPING[LAYER_TYPE] = TrisparseCacheLayer
STATIC_LAYER_TYPE_MAPPING[LAYER_TYPE] = TrisparseStaticLayer


def new_cache(model: Any, room: int) -> DynamicCache | StaticCache:
    """An empty cache for `room` tokens a row: on a GPU a static one, with which steps are captured."""
    if model.device.type == "cuda":
        return StaticCache(config=model.config, max_cache_len=room)
    return DynamicCache(config=model.config)


def cache_layers(past_key_values: Any, num_layers: int) -> list[TrisparseCacheLayer]:
    """The layers of a cache made for this model.

    Raises:
        TypeError: another cache, for example a DynamicCache made without the model's config.
        NotImplementedError: a cache that is to be offloaded.
    """
    layers = getattr(past_key_values, "layers", None)
    fits = isinstance(past_key_values, DynamicCache | StaticCache) and len(layers or ()) == num_layers
    if not fits or not all(isinstance(layer, TrisparseCacheLayer) for layer in layers or ()):
        raise TypeError(
            f"past_key_values: expected DynamicCache(config=model.config) with {num_layers} layers, "
            f"got {type(past_key_values).__name__}"
        )
    if past_key_values.offloading:
        raise NotImplementedError(_NO_OFFLOADING)
    return list(layers or ())


def cached_lengths(layers: list[TrisparseCacheLayer]) -> list[int]:
    """Tokens of each row, which all layers must agree on; empty for a cache without rows.

    Raises:
        ValueError: the layers hold different lengths, as after a crop that some of them refused.
    """
    lengths = [[] if layer.state is None else layer.state.lengths for layer in layers]
    if any(layer.is_broken for layer in layers) or any(other != lengths[0] for other in lengths):
        raise ValueError(
            "past_key_values: expected layers of equal lengths; a crop or a forward failed halfway: "
            "start a new cache"
        )
    return list(lengths[0])


def check_state(layer: TrisparseCacheLayer, wanted: BatchCache, index: int) -> None:
    """A layer's state, if it has one, must be of the kind of `wanted`, a new one of layer `index`.

    Raises:
        ValueError: it was made for another attention or other block sizes.
    """
    if layer.state is None:
        return
    got, expected = _kind(layer.state), _kind(wanted)
    if got != expected:
        raise ValueError(
            f"past_key_values: expected the cache of this model, in layer {index} {expected}, got {got}"
        )


def _kind(state: BatchCache) -> tuple[Any, ...]:
    sizes = (state.config, state.shared) if isinstance(state, SparseCache) else ()
    return (type(state).__name__, *sizes)


def take_back(layers: list[TrisparseCacheLayer], lengths: list[int]) -> None:
    """After a forward that failed: all layers hold `lengths` tokens again, or are told apart as broken."""
    for layer in layers:
        if layer.state is None:
            continue
        try:
            if lengths:
                layer.state.crop(lengths)
                continue
        except ValueError:
            # more tokens came than a ring can take back: `cached_lengths` refuses this cache from now on
            pass
        layer.state.reset()
        layer.is_broken = layer.slots > 0
