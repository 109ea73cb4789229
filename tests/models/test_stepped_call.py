"""`generate` where shapes are static: steps by one program, and what keeps a call from being one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CompileConfig, StaticCache

from trisparse.invariance import batch_invariant
from trisparse.models import TokenStep, TrisparseForCausalLM
from trisparse.models.stepped_call import SteppedCall
from trisparse.nn.probe import recording

from .generated import KINDS, generated, greedy_without_cache, model_of
from .tiny import ids_of

NEW_TOKENS = 14


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The ids of every step that is taken."""
    taken: list[Tensor] = []
    call = TokenStep.__call__

    def counted(step: TokenStep, ids: Tensor) -> Tensor:
        taken.append(ids)
        return call(step, ids)

    monkeypatch.setattr(TokenStep, "__call__", counted)
    return taken


def stepped(model: TrisparseForCausalLM, ids: Tensor, **settings: Any) -> Tensor:
    """`generate` as a GPU goes about it."""
    everywhere = CompileConfig()
    everywhere._compile_all_devices = True
    settings = {"cache_implementation": "static", "compile_config": everywhere} | settings
    return generated(model, ids, max_new_tokens=NEW_TOKENS, **settings)


@pytest.mark.parametrize("settings", [{}, {"prefill_chunk_size": 4}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_text_is_the_same(kind: str, settings: dict[str, Any], steps: list[Tensor]) -> None:
    """Guards `generate` by captured steps, left padding included."""
    model, ids = model_of(kind), ids_of(2, 14)
    assert torch.equal(stepped(model, ids, **settings), greedy_without_cache(model, ids))
    # the prompt gives the first token
    assert len(steps) == NEW_TOKENS - 1
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    padded = stepped(model, ids * mask, attention_mask=mask, **settings)
    assert torch.equal(padded[1:], greedy_without_cache(model, ids[1:, 5:]))


def test_rows_that_end_early_wait(steps: list[Tensor]) -> None:
    """Guards a row that has ended beside one that goes on."""
    model, ids = model_of("mixed"), ids_of(2, 9)
    first = greedy_without_cache(model, ids[:1], steps=4)[0, -1]
    settings = {"eos_token_id": int(first), "pad_token_id": 0}
    assert torch.equal(stepped(model, ids, **settings), generated(model, ids, use_cache=False, **settings))
    assert steps


def test_a_cache_of_the_users_is_gone_on_with(steps: list[Tensor]) -> None:
    """Guards a second turn with the cache of the first."""
    model, ids = model_of(), ids_of(1, 9)
    cache = StaticCache(config=model.config, max_cache_len=64)
    first = torch.cat([ids, stepped(model, ids, cache_implementation=None, past_key_values=cache)], dim=1)
    second = torch.cat([first, ids_of(1, 5, seed=3)], dim=1)
    found = stepped(model, second, cache_implementation=None, past_key_values=cache)
    assert torch.equal(found, greedy_without_cache(model, second))
    assert len(steps) == 2 * (NEW_TOKENS - 1)


@pytest.mark.parametrize("settings", [{"disable_compile": True}, {"cache_implementation": None}], ids=str)
def test_who_does_not_want_steps_gets_none(settings: dict[str, Any], steps: list[Tensor]) -> None:
    """Guards the switch of transformers, and caches that grow."""
    model, ids = model_of(), ids_of(2, 9)
    assert torch.equal(stepped(model, ids, **settings), greedy_without_cache(model, ids))
    assert not steps


@contextmanager
def hooked(model: TrisparseForCausalLM) -> Iterator[None]:
    handle = model.model.layers[0].register_forward_hook(lambda *_: None)
    yield
    handle.remove()


@contextmanager
def with_states(model: TrisparseForCausalLM) -> Iterator[None]:
    model.config.output_hidden_states = True
    yield


WATCHES = {
    "hook": hooked,
    "recording": lambda _: recording(),
    "invariant": lambda _: batch_invariant(),
    "autocast": lambda _: torch.autocast("cpu", torch.bfloat16),
    "hidden states": with_states,
}


@pytest.mark.parametrize("watch", WATCHES)
def test_what_looks_inside_or_changes_the_program_sees_each_call(watch: str, steps: list[Tensor]) -> None:
    """Guards hooks, records and modes that a captured step would pass by."""
    model, ids = model_of().float(), ids_of(2, 9)
    cache = StaticCache(config=model.config, max_cache_len=20)
    with torch.no_grad(), WATCHES[watch](model):
        call = SteppedCall(model)
        call(input_ids=ids[:, :8], past_key_values=cache)
        out = call(input_ids=ids[:, 8:], past_key_values=cache)
    assert not steps
    assert (out.hidden_states is not None) == (watch == "hidden states")


INPUTS: dict[str, Any] = {
    "nothing else": {},
    "one row of logits": {"logits_to_keep": 1, "use_cache": True, "return_dict": True},
    "chosen logits": {"logits_to_keep": torch.tensor([0])},
    "hidden states": {"output_hidden_states": True},
    "padding": {"attention_mask": torch.tensor([[1] * 9, [1] * 8 + [0]])},
}


@pytest.mark.parametrize("name", INPUTS)
def test_calls_are_those_of_the_model(name: str, steps: list[Tensor]) -> None:
    """Guards arguments that a step would ignore."""
    model, ids = model_of(), ids_of(2, 9)
    found = []
    for call in (SteppedCall(model), model):
        cache = StaticCache(config=model.config, max_cache_len=20)
        with torch.no_grad():
            call(input_ids=ids[:, :8], past_key_values=cache)
            out = call(input_ids=ids[:, 8:], past_key_values=cache, **INPUTS[name])
        found.append((out.logits, out.hidden_states, cache.layers[0].state.lengths))
    assert len(steps) == (name in ("nothing else", "one row of logits"))
    torch.testing.assert_close(*found)


def test_wrong_positions_are_refused_as_ever(steps: list[Tensor]) -> None:
    """Guards the checks of a cached call: a step has none of them."""
    model, ids = model_of(), ids_of(2, 9)
    cache = StaticCache(config=model.config, max_cache_len=20)
    call = SteppedCall(model)
    call(input_ids=ids[:, :8], past_key_values=cache)
    with pytest.raises(ValueError, match=r"^position_ids: expected positions from"):
        call(input_ids=ids[:, 8:], past_key_values=cache, position_ids=torch.tensor([[3], [3]]))
    with pytest.raises(ValueError, match=r"^attention_mask: expected"):
        call(input_ids=ids[:, 8:], past_key_values=cache, attention_mask=torch.ones(2, 4))
    assert cache.get_seq_length() == 8
    assert not steps
