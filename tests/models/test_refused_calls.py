"""Calls that a cache refuses: they name what is wrong, and the text goes on as if they had never come."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from trisparse.models import TrisparseForCausalLM
from trisparse.models.cache_name import CACHE_NAME

from .generated import model_of
from .tiny import ids_of, tiny_model

HOLES = torch.ones(2, 22, dtype=torch.long)
HOLES[0, 19:21] = 0
PAST = torch.ones(2, 22, dtype=torch.long)
PAST[1, 7] = 0


# what is wrong -> arguments beside four new tokens of two rows, the start of the message
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "hole in the mask": ({"attention_mask": HOLES}, "attention_mask: expected left padding"),
    "hole in the past": ({"attention_mask": PAST}, "attention_mask: expected as many ones"),
    "mask of another batch": (
        {"attention_mask": torch.ones(3, 22)},
        r"attention_mask: expected \[2, 18 \+ 4\]",
    ),
    "dense mask": ({"attention_mask": torch.ones(2, 1, 4, 22)}, r"attention_mask: expected \[2, 18 \+ 4\]"),
    "mask of room to come": (
        {"attention_mask": (torch.arange(40) < 22).long().expand(2, 40)},
        r"attention_mask: expected \[2, 18 \+ 4\], got \[2, 40\]",
    ),
    "mask that knows more": (
        {"attention_mask": torch.ones(2, 30)},
        r"attention_mask: expected \[2, 18 \+ 4\], got \[2, 30\]",
    ),
    "labels of other tokens": ({"labels": ids_of(2, 3)}, r"labels: expected \[2, 4\], got \[2, 3\]"),
    "short mask": ({"attention_mask": torch.ones(2, 3)}, r"attention_mask: expected \[2, 18 \+ 4\]"),
    "positions backwards": (
        {"position_ids": torch.tensor([[18, 17, 16, 15]] * 2)},
        "position_ids: expected positions from 18",
    ),
    "positions from the start": ({"position_ids": torch.arange(4)[None]}, "position_ids: expected positions"),
    "one position for all": ({"position_ids": torch.tensor([[21]])}, r"position_ids: expected \[1 or 2, 4\]"),
    "too many positions": (
        {"position_ids": torch.arange(18, 24)[None]},
        r"position_ids: expected \[1 or 2, 4\], got \[1, 6\]",
    ),
    "positions of three rows": (
        {"position_ids": torch.arange(18, 22).expand(3, 4)},
        r"position_ids: expected \[1 or 2, 4\], got \[3, 4\]",
    ),
    "positions without a batch": (
        {"position_ids": torch.arange(18, 22)},
        r"position_ids: expected \[1 or 2, 4\], got \[4\]",
    ),
    "positions of one row": (
        {"position_ids": torch.tensor([[18, 19, 20, 21], [17, 18, 19, 20]])},
        "position_ids: expected positions from 18",
    ),
    "another batch": ({"input_ids": ids_of(3, 4)}, "past_key_values: expected a batch of 2 rows, got 3"),
    "another batch with positions": (
        {"input_ids": ids_of(1, 4), "position_ids": torch.arange(18, 22)[None]},
        "past_key_values: expected a batch of 2 rows, got 1",
    ),
    "unknown token": ({"input_ids": torch.full((2, 4), 40)}, "input_ids: expected ids below vocab_size=40"),
    "tokens without a batch": ({"input_ids": ids_of(2, 4)[0]}, r"input_ids: expected \[B, T\], got \[4\]"),
    "embeddings of another width": (
        {"input_ids": None, "inputs_embeds": torch.zeros(2, 4, 15).double()},
        r"inputs_embeds: expected \[B, T, 16\], got \[2, 4, 15\]",
    ),
    "nothing": ({"input_ids": None}, "input_ids: expected either input_ids or inputs_embeds"),
}


# the same for what is of another type
OF_ANOTHER_TYPE: dict[str, tuple[dict[str, Any], str]] = {
    "list of tokens": ({"input_ids": [[1, 2], [3, 4]]}, "input_ids: expected a torch.Tensor, got list"),
    "fractions of tokens": (
        {"input_ids": torch.ones(2, 4)},
        "input_ids: expected int64 or int32, got torch.float32",
    ),
    "list as mask": (
        {"attention_mask": [[1] * 22] * 2},
        "attention_mask: expected a torch.Tensor, got list",
    ),
    "list of positions": (
        {"position_ids": [[18, 19, 20, 21]]},
        "position_ids: expected a torch.Tensor, got list",
    ),
    "fractions of positions": (
        {"position_ids": torch.arange(18.0, 22.0)[None]},
        "position_ids: expected int64 or int32, got torch.float32",
    ),
    "list of labels": ({"labels": [[1] * 4] * 2}, "labels: expected a torch.Tensor, got list"),
    "fractions of labels": ({"labels": torch.ones(2, 4)}, "labels: expected int64, got torch.float32"),
    "list of embeddings": (
        {"input_ids": None, "inputs_embeds": [[[0.0] * 16]]},
        "inputs_embeds: expected a torch.Tensor, got list",
    ),
    "narrow embeddings": (
        {"input_ids": None, "inputs_embeds": torch.zeros(2, 4, 16)},
        "inputs_embeds: expected torch.float64, got torch.float32",
    ),
}


def filled(model: TrisparseForCausalLM, tokens: int = 18) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids_of(2, 40)[:, :tokens], past_key_values=cache)
    return cache


def check_it_goes_on(model: TrisparseForCausalLM, cache: DynamicCache, tokens: int = 18) -> None:
    """The cache still holds exactly `tokens` tokens of two rows."""
    ids = ids_of(2, 40)
    with torch.no_grad():
        out = model(ids[:, tokens:], past_key_values=cache).logits
        expected = model(ids, use_cache=False).logits[:, tokens:]
    assert cache.get_seq_length() == 40
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("kind", ["nsa", "mixed"])
def test_refused_call_leaves_the_cache_as_it_was(kind: str, fault: str) -> None:
    """Guards every argument that comes beside a cache."""
    model = model_of(kind)
    cache = filled(model)
    others, message = WRONG[fault]
    arguments = {"input_ids": ids_of(2, 4)} | others
    with torch.no_grad(), pytest.raises(ValueError, match=f"^{message}"):
        model(**arguments, past_key_values=cache)
    check_it_goes_on(model, cache)


@pytest.mark.parametrize("fault", OF_ANOTHER_TYPE)
@pytest.mark.parametrize("kind", ["nsa", "mixed"])
def test_argument_of_another_type_is_named(kind: str, fault: str) -> None:
    """Guards against errors from inside of PyTorch, which name nothing that the caller wrote."""
    model = model_of(kind)
    cache = filled(model)
    others, message = OF_ANOTHER_TYPE[fault]
    arguments = {"input_ids": ids_of(2, 4)} | others
    with torch.no_grad(), pytest.raises(TypeError, match=f"^{message}"):
        model(**arguments, past_key_values=cache)
    with torch.no_grad(), pytest.raises(TypeError, match=f"^{message.split(':')[0]}: "):
        model(**arguments, use_cache=False)
    check_it_goes_on(model, cache)


@pytest.mark.parametrize("shape", [(2, 1), (1, 1), (1, 5), (3, 4), (4,)], ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_positions_of_another_shape_are_refused_without_a_cache(padded: bool, shape: tuple[int, ...]) -> None:
    """Guards against one position that is taken for all, where each token then was a document."""
    model, mask = model_of(), torch.ones(2, 4, dtype=torch.long)
    mask[1, 0] = 0 if padded else 1
    wrong = torch.zeros(shape, dtype=torch.long)
    with torch.no_grad(), pytest.raises(ValueError, match=r"^position_ids: expected \[1 or 2, 4\], got \["):
        model(ids_of(2, 4), attention_mask=mask, position_ids=wrong, use_cache=False)


# a norm whose input and weight differ is slower, and says so
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_embeddings_of_another_dtype_are_taken_in_autocast() -> None:
    """Guards the check of their dtype against refusing what autocast would cast."""
    model = tiny_model()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(inputs_embeds=torch.zeros(1, 4, 16, dtype=torch.bfloat16), use_cache=False)
    assert out.logits.isfinite().all()


# what is asked of a filled cache -> the error
WRONG_OF_A_CACHE: dict[str, tuple[Callable[[DynamicCache], Any], type[Exception], str]] = {
    "part of a token": (
        lambda cache: cache.crop(-2.7),  # type: ignore[arg-type]
        TypeError,
        "tokens_to_remove: expected an int, got float -2.7",
    ),
    "part of a token in a tensor": (
        lambda cache: cache.crop(torch.tensor(-2.7)),  # type: ignore[arg-type]
        TypeError,
        "tokens_to_remove: expected an int, got float -2.7",
    ),
    "as many tokens as False": (
        lambda cache: cache.crop(False),
        TypeError,
        "tokens_to_remove: expected an int, got bool False",
    ),
    "no row": (
        lambda cache: cache.batch_repeat_interleave(0),
        ValueError,
        "repeats: expected at least 1, got 0",
    ),
    "fewer rows than none": (
        lambda cache: cache.batch_repeat_interleave(-1),
        ValueError,
        "repeats: expected at least 1, got -1",
    ),
    "half a row": (
        lambda cache: cache.batch_repeat_interleave(1.5),  # type: ignore[arg-type]
        TypeError,
        "repeats: expected an int, got float 1.5",
    ),
    "mask of three rows": (
        lambda cache: cache.batch_select_indices(torch.tensor([True, False, False])),
        ValueError,
        r"indices: expected a mask of \[2\], got \[3\]",
    ),
    "mask of one row": (
        lambda cache: cache.batch_select_indices(torch.tensor([True])),
        ValueError,
        r"indices: expected a mask of \[2\], got \[1\]",
    ),
    "fractions of rows": (
        lambda cache: cache.batch_select_indices(torch.tensor([1.0, 0.0])),
        TypeError,
        "indices: expected ints, got float 1.0",
    ),
    "fractions of beams": (
        lambda cache: cache.reorder_cache(torch.tensor([1.0, 0.0])),  # type: ignore[arg-type]
        TypeError,
        "indices: expected ints, got float 1.0",
    ),
    "row that is not there": (
        lambda cache: cache.batch_select_indices(torch.tensor([0, 2])),
        ValueError,
        r"indices: expected rows 0 \.\. 1, got \[0, 2\]",
    ),
}


@pytest.mark.parametrize("fault", WRONG_OF_A_CACHE)
@pytest.mark.parametrize("kind", ["nsa", "mixed"])
def test_cache_refuses_by_name_and_stays_as_it_was(kind: str, fault: str) -> None:
    """Guards against rows that are dropped, or out of step, without a word."""
    model = model_of(kind)
    cache = filled(model)
    act, error, message = WRONG_OF_A_CACHE[fault]
    with pytest.raises(error, match=f"^{message}"):
        act(cache)
    assert cache.get_seq_length() == 18
    check_it_goes_on(model, cache)


@pytest.mark.parametrize(
    "change",
    [
        {"nsa_window": 6},
        {"nsa_num_selected": 4},
        {"shared_kv": True},
        {"attention": ["full", "full"]},
        {"attention": ["nsa", "full"]},
        {"attention": "nsa"},
    ],
    ids=str,
)
def test_cache_of_another_configuration_is_refused_and_kept(change: dict[str, Any]) -> None:
    """Guards against a first layer that takes the tokens before a later layer refuses the cache."""
    model = model_of("mixed")
    settings = {"attention": ["full", "nsa"]} | change
    other = tiny_model(tie_word_embeddings=False, **settings).double()
    cache = filled(model)
    with torch.no_grad(), pytest.raises(ValueError, match="^past_key_values: expected the cache"):
        other(ids_of(2, 4), past_key_values=cache)
    check_it_goes_on(model, cache)


@pytest.mark.parametrize("change", ["dtype", "head_dim", "key_value_heads", "device"])
def test_cache_of_other_numbers_is_refused_and_kept(change: str) -> None:
    """Guards the dtype and the shape of tokens, which only the layers know."""
    model = model_of("mixed")
    shapes: dict[str, Any] = {
        "head_dim": {"head_dim": 8},
        "key_value_heads": {"num_key_value_heads": 4},
    }
    settings = shapes.get(change, {})
    other = tiny_model(attention=["full", "nsa"], tie_word_embeddings=False, **settings).double()
    if change == "dtype":
        other = other.float()
    device = "meta" if change == "device" else "cpu"
    cache = filled(model)
    with torch.no_grad(), pytest.raises(ValueError, match="^cache: expected key tokens"):
        other.to(device)(ids_of(2, 4).to(device), past_key_values=cache)
    check_it_goes_on(model, cache)


# masks of a prompt that are no left padding
NOT_LEFT = {"right": [1, 1, 1, 1, 0, 0], "both sides": [0, 1, 1, 1, 1, 0], "hole": [1, 1, 0, 0, 1, 1]}


@pytest.mark.parametrize("many", [False, True], ids=["short", "long"])
@pytest.mark.parametrize("mask", NOT_LEFT)
@pytest.mark.parametrize("kind", ["nsa", "mixed"])
def test_prompt_with_another_padding_than_on_the_left_is_refused(kind: str, mask: str, many: bool) -> None:
    """Guards an empty cache against half a prompt, and `generate` against text after padding."""
    model, cache = model_of(kind), DynamicCache(config=model_of(kind).config)
    wrong = torch.ones(2, 6, dtype=torch.long)
    wrong[1] = torch.tensor(NOT_LEFT[mask])
    wrong = wrong.repeat_interleave(20 if many else 1, dim=1)
    ids = ids_of(2, wrong.shape[1])
    refused = pytest.raises(ValueError, match="^attention_mask: expected left padding, got a mask that falls")
    with torch.no_grad(), refused:
        model(ids, attention_mask=wrong, past_key_values=cache)
    with refused:
        model.generate(ids, attention_mask=wrong, max_new_tokens=2, **{CACHE_NAME: cache})
    assert cache.get_seq_length() == 0
    check_it_goes_on(model, cache, tokens=0)


@pytest.mark.parametrize("remove", [19, 1000])
@pytest.mark.parametrize("kind", ["nsa", "mixed"])
def test_crop_beyond_the_length_is_refused(kind: str, remove: int) -> None:
    """Guards against rows of negative length."""
    model = model_of(kind)
    cache = filled(model)
    with pytest.raises(ValueError, match=r"^lengths: expected 0 \.\. 18"):
        cache.crop(-remove)
    with pytest.raises(ValueError, match="^tokens_to_remove: expected 0 or a negative number"):
        cache.crop(remove)
    assert cache.get_seq_length() == 18
    check_it_goes_on(model, cache)


def failing_after(model: TrisparseForCausalLM, error: BaseException) -> Callable[[], None]:
    """Makes the last block fail when everything before it is done -> how to end that."""

    def fail(*_: Any) -> None:
        raise error

    return model.model.layers[-1].mlp.register_forward_pre_hook(fail).remove


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), RuntimeError("out of memory")], ids=["stop", "memory"]
)
@pytest.mark.parametrize("kind", ["nsa", "mixed"])
@pytest.mark.parametrize("tokens", [1, 18])
def test_interrupted_forward_is_taken_back(kind: str, error: BaseException, tokens: int) -> None:
    """Guards Ctrl-C in a chat: some layers have taken the new tokens and others have not."""
    model = model_of(kind)
    cache = filled(model)
    remove = failing_after(model, error)
    with torch.no_grad(), pytest.raises(type(error)):
        model(ids_of(2, tokens, seed=9), past_key_values=cache)
    remove()
    assert cache.get_seq_length() == 18
    check_it_goes_on(model, cache)


def test_interrupted_prefill_leaves_an_empty_cache() -> None:
    """Guards the first forward, after which there is nothing to go back to."""
    model = model_of("mixed")
    cache = DynamicCache(config=model.config)
    remove = failing_after(model, KeyboardInterrupt())
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        model(ids_of(2, 200), past_key_values=cache)
    remove()
    assert cache.get_seq_length() == 0
    check_it_goes_on(model, cache, tokens=0)


@pytest.mark.parametrize("kind", ["nsa", "mixed"])
def test_what_cannot_be_taken_back_is_refused_later(kind: str) -> None:
    """Guards against wrong text after more tokens than the rings can give back, in all layers or in some."""
    model = model_of(kind)
    cache = filled(model)
    remove = failing_after(model, KeyboardInterrupt())
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        model(ids_of(2, 400), past_key_values=cache)
    remove()
    with torch.no_grad(), pytest.raises(ValueError, match="^past_key_values: expected layers of"):
        model(ids_of(2, 1), past_key_values=cache)
    cache.reset()
    check_it_goes_on(model, cache, tokens=0)


@pytest.mark.parametrize("kind", ["nsa", "mixed"])
def test_crop_that_one_layer_refuses_changes_no_layer(kind: str) -> None:
    """Guards against layers out of step after a crop that only the sparse ones must refuse."""
    model, ids = model_of(kind), ids_of(2, 420)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        for tokens in ids[:, :401].split([300, 101], dim=1):
            model(tokens, past_key_values=cache)
        with pytest.raises(ValueError, match="max_rollback"):
            cache.crop(-390)
        out = model(ids[:, 401:], past_key_values=cache).logits
        expected = model(ids, use_cache=False).logits[:, 401:]
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-10)


def test_cache_begun_in_inference_mode_can_be_used_outside() -> None:
    """Guards a prompt that was read in inference mode, and answered, or rearranged for beams, in no_grad."""
    model, ids = model_of("mixed"), ids_of(2, 40)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(ids[:, :15], past_key_values=cache)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([True, False, True, False]))
        model(ids[:, 15:18], past_key_values=cache)
    check_it_goes_on(model, cache)
