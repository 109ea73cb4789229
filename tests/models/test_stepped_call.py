"""`generate` where shapes are static: steps by one program, and what keeps a call from being one."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CompileConfig, StaticCache

from trisparse.invariance import batch_invariant
from trisparse.models import TokenStep, TrisparseConfig, TrisparseForCausalLM, token_step
from trisparse.models.modeling import Block
from trisparse.models.stepped_call import SteppedCall
from trisparse.nn.probe import recording

from .generated import KINDS, generated, greedy_without_cache, model_of
from .tiny import ids_of

NEW_TOKENS = 14
# the prompt gives the first token, plain calls the next two
STEPS = NEW_TOKENS - 3
KINDS_OF_LAYERS = {"nsa": "nsa", "mixed": ["full", "nsa"], "full": "full"}


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
    assert len(steps) == STEPS
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
    first = torch.cat([ids, stepped(model, ids, cache_implementation=None, cache=cache)], dim=1)
    second = torch.cat([first, ids_of(1, 5, seed=3)], dim=1)
    found = stepped(model, second, cache_implementation=None, cache=cache)
    assert torch.equal(found, greedy_without_cache(model, second))
    assert len(steps) == 2 * STEPS


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
def hooked_everywhere(_: TrisparseForCausalLM) -> Iterator[None]:
    handle = torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: None)
    yield
    handle.remove()


@contextmanager
def wrapped(model: TrisparseForCausalLM) -> Iterator[None]:
    """As accelerate wraps a model for mixed precision."""
    model.forward = model.forward
    yield


class OwnBlock(Block):
    pass


@contextmanager
def with_own_block(model: TrisparseForCausalLM) -> Iterator[None]:
    model.model.layers[0].__class__ = OwnBlock
    yield


@contextmanager
def with_states(model: TrisparseForCausalLM) -> Iterator[None]:
    model.config.output_hidden_states = True
    yield


WATCHES = {
    "hook": hooked,
    "hook on all modules": hooked_everywhere,
    "wrapped forward": wrapped,
    "block of a subclass": with_own_block,
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
        call(input_ids=ids[:, :4], past_key_values=cache)
        for place in range(4, 9):
            out = call(input_ids=ids[:, place, None], past_key_values=cache)
    assert not steps
    assert (out.hidden_states is not None) == (watch == "hidden states")


INPUTS: dict[str, Any] = {
    "nothing else": {},
    "one row of logits": {"logits_to_keep": 1, "use_cache": True, "return_dict": True},
    "chosen logits": {"logits_to_keep": torch.tensor([0])},
    "hidden states": {"output_hidden_states": True},
    "a tuple": {"return_dict": False},
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
            call(input_ids=ids[:, :6], past_key_values=cache)
            for place in (6, 7):
                call(input_ids=ids[:, place, None], past_key_values=cache)
            out = call(input_ids=ids[:, 8:], past_key_values=cache, **INPUTS[name])
        if isinstance(out, tuple):
            found.append((out[0], None, cache.layers[0].state.lengths))
            continue
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


def test_rows_may_be_chosen_between_steps(steps: list[Tensor]) -> None:
    """Guards a step that was made for another number of rows."""
    model, ids = model_of(), ids_of(2, 16)
    cache = StaticCache(config=model.config, max_cache_len=20)
    call = SteppedCall(model)
    call(input_ids=ids[:, :8], past_key_values=cache)
    for place in range(8, 12):
        call(input_ids=ids[:, place, None], past_key_values=cache)
    cache.batch_select_indices(torch.tensor([1]))
    for place in range(12, 16):
        found = call(input_ids=ids[1:, place, None], past_key_values=cache).logits
    assert len(steps) == 6
    torch.testing.assert_close(found, model(ids[1:], use_cache=False).logits[:, -1:])


def test_a_step_that_cannot_be_captured_gives_way_to_plain_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards text of models with modules that wait for the device, which a capture forbids."""
    tries: list[int] = []

    def refuse(step: TokenStep) -> Tensor:
        tries.append(1)
        step._program()
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(TokenStep, "_run", refuse)
    model, ids = model_of(), ids_of(2, 9)
    with pytest.warns(UserWarning, match="steps are not captured, for one failed: operation not permitted"):
        assert torch.equal(stepped(model, ids), greedy_without_cache(model, ids))
    assert len(tries) == 1


def test_a_subclass_with_a_forward_of_its_own_is_called(steps: list[Tensor]) -> None:
    """Guards a model that changes its logits, for which a step would write other text."""

    class Banning(TrisparseForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits[..., 20:] = -torch.inf
            return out

    model, ids = model_of(), ids_of(2, 9)
    model.__class__ = Banning
    assert stepped(model, ids).amax() < 20
    assert not steps


@pytest.mark.parametrize(
    ("backend", "dtype", "kind", "can"),
    [
        ("auto", torch.bfloat16, "nsa", True),
        ("torch", torch.bfloat16, "nsa", False),
        ("auto", torch.float64, "mixed", False),
        ("torch", torch.float64, "full", True),
    ],
)
def test_only_kernels_for_steps_are_captured(
    monkeypatch: pytest.MonkeyPatch, backend: str, dtype: torch.dtype, kind: str, can: bool
) -> None:
    """Guards backends that read lengths on the host, which a capture forbids."""

    def chosen(name: str, _: str, dtype: torch.dtype) -> str:
        return "triton" if name == "auto" and dtype != torch.float64 else "torch"

    monkeypatch.setattr(token_step, "choose", chosen)
    config = TrisparseConfig(backend=backend, num_hidden_layers=2, attention=KINDS_OF_LAYERS[kind])
    weight = SimpleNamespace(device=torch.device("cuda"), dtype=dtype)
    model: Any = SimpleNamespace(config=config, lm_head=SimpleNamespace(weight=weight))
    assert token_step.has_kernels(model) == can
    if not can:
        with pytest.raises(NotImplementedError, match=r"^model: expected one that Triton's kernels take"):
            TokenStep(model, StaticCache(config=config, max_cache_len=20))
