"""No tensor of a model with sparse layers has a size that grows with the square of the text."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from trisparse.models import TrisparseForCausalLM

from .tiny import ids_of, tiny_model

TOKENS = 1536


class Shapes(TorchDispatchMode):
    """Records the shapes of what every operator returns; what a native kernel keeps inside is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.seen |= {tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        return result

    def dense(self) -> list[tuple[int, ...]]:
        """Shapes with two sizes of at least TOKENS, or as many numbers as a quarter of the square."""
        return [
            shape
            for shape in self.seen
            if sum(size >= TOKENS for size in shape) > 1 or torch.Size(shape).numel() >= TOKENS * TOKENS // 4
        ]


def shapes_of(model: TrisparseForCausalLM, chunks: list[int], **others: Any) -> Shapes:
    """What appears while TOKENS tokens come through the cache in chunks of these sizes."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), Shapes() as shapes:
        for chunk in ids_of(1, TOKENS + 8).split(chunks, dim=1):
            model(chunk, past_key_values=cache, logits_to_keep=1, **others)
    assert any(size >= TOKENS for shape in shapes.seen for size in shape)
    return shapes


WAYS = {"at once": [TOKENS, 5, 1, 1, 1], "in chunks": [TOKENS // 2 + 4, TOKENS // 2, 1, 1, 1, 1]}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize(
    "others", [{}, {"shared_kv": True, "compressed_rope": "none"}], ids=["nsa", "shared"]
)
def test_prefill_and_decode_make_no_dense_tensor(others: dict[str, Any], backend: str, way: str) -> None:
    """Guards memory: a mask or scores of [Tq, Tk] would end at long texts."""
    model = tiny_model(backend=backend, **others)
    assert shapes_of(model, WAYS[way]).dense() == []


def test_generate_makes_no_dense_tensor() -> None:
    """Guards what transformers puts around the model: no causal mask, padded rows included."""
    model, ids = tiny_model(), ids_of(2, TOKENS)
    mask = torch.ones_like(ids)
    mask[1, :100] = 0
    with Shapes() as shapes:
        model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False)
        model.generate(ids, max_new_tokens=2, do_sample=False, cache_implementation="static")
    assert (2, TOKENS) in shapes.seen
    assert shapes.dense() == []


def test_dense_tensors_are_seen() -> None:
    """Guards the other tests here: full attention to what the cache holds needs a mask, and is caught."""
    model = tiny_model(attention="full")
    assert shapes_of(model, WAYS["in chunks"]).dense() != []
