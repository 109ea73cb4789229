"""`torch.compile` of the decode step: the same tokens, from programs that are compiled once."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from transformers import DynamicCache, StaticCache

from .generated import KINDS, greedy_without_cache, model_of
from .tiny import ids_of


@pytest.fixture(autouse=True)
def _nothing_compiled_yet() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_steps_choose_the_same_tokens_and_compile_once(kind: str, static: bool) -> None:
    """Guards against lengths that become constants of a program: each token would compile another one."""
    model, ids, programs, steps = model_of(kind), ids_of(2, 21), [], 12
    cache = (
        StaticCache(config=model.config, max_cache_len=64) if static else DynamicCache(config=model.config)
    )

    def counted(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        programs.append(graph)
        return aot_eager(graph, inputs)

    step = torch.compile(model.forward, backend=counted)
    tokens, counts = [], []
    with torch.no_grad():
        logits = model(ids, past_key_values=cache).logits
        for _ in range(steps):
            tokens.append(logits[:, -1:].argmax(dim=-1))
            logits = step(tokens[-1], past_key_values=cache, use_cache=True).logits
            counts.append(len(programs))
    assert torch.equal(torch.cat(tokens, dim=1), greedy_without_cache(model, ids, steps))
    assert counts == [counts[0]] * steps
    assert counts[0] > 0


# torch itself, where it imports its compiler
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_steps_compiled_as_users_compile_them_choose_the_same_tokens() -> None:
    """Guards against a norm, or a SwiGLU, that the default backend fuses into another one."""
    model, ids, steps = model_of("mixed"), ids_of(2, 21), 8
    step, cache, tokens = torch.compile(model.forward), DynamicCache(config=model.config), []
    with torch.no_grad():
        logits = model(ids, past_key_values=cache).logits
        for _ in range(steps):
            tokens.append(logits[:, -1:].argmax(dim=-1))
            logits = step(tokens[-1], past_key_values=cache, use_cache=True).logits
    whole = torch.cat(tokens, dim=1)
    assert torch.equal(whole, greedy_without_cache(model, ids, steps))
    with torch.no_grad():
        expected = model(torch.cat([ids, whole], dim=1), use_cache=False).logits[:, -1:]
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)
