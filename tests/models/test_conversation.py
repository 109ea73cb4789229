"""Conversations: every turn continues all turns before it, and computes only what is new."""

from typing import Any

import pytest
import torch
from jinja2 import TemplateError

from trisparse.cli.stopwatch import Stopwatch
from trisparse.data.tokenizer import VOCAB_SIZE, byte_tokenizer
from trisparse.models import TrisparseForCausalLM
from trisparse.models.conversation import Conversation

from .generated import greedy_without_cache
from .tiny import tiny_model

SETTINGS: dict[str, Any] = {"max_new_tokens": 9, "do_sample": False}
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content.strip() }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# refuses what many do
STRICT = (
    "{% for m in messages %}"
    "{% if m.role == 'user' and not m.content.strip() %}{{ raise_exception('empty') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('two in a row') }}{% endif %}"
    "{% endfor %}"
)


def model_of(**others: Any) -> TrisparseForCausalLM:
    settings = {"attention": ["full", "nsa"], "tie_word_embeddings": False, "vocab_size": VOCAB_SIZE}
    return tiny_model(**(settings | others)).double()


def new_conversation(**others: Any) -> Conversation:
    return Conversation(model_of(**others), byte_tokenizer())


class Interrupting:
    """A streamer that is interrupted at its third new token."""

    def __init__(self) -> None:
        self.calls = 0

    def put(self, _ids: torch.Tensor) -> None:
        self.calls += 1
        if self.calls > 3:
            raise KeyboardInterrupt

    def end(self) -> None:
        pass


def check_turn(conversation: Conversation, text: str, **settings: Any) -> None:
    """The next answer is what the model says to the whole conversation without a cache."""
    before = list(conversation.ids)
    conversation.ask(text, **SETTINGS, **settings)
    prompt = before + list(f"{text}\n".encode())
    expected = greedy_without_cache(conversation.model, torch.tensor([prompt]), 9)[0].tolist()
    assert conversation.ids == prompt + expected
    assert conversation.cache.get_seq_length() == len(conversation.ids) - 1


def test_turns_continue_one_another() -> None:
    """Guards the cache across turns, and the count of what is read anew."""
    conversation = new_conversation()
    for turn, text in enumerate(["How are you today?", "Why?", "é"]):
        check_turn(conversation, text)
        assert conversation.prefilled == len(f"{text}\n".encode()) + (turn > 0)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_new_text_is_read_in_chunks(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Guards the second turn: before 5.21, `generate` of transformers reads again what the cache holds."""
    conversation = new_conversation()
    forward, read = conversation.model.forward, []

    def counted(input_ids: torch.Tensor, **others: Any) -> Any:
        read.append(input_ids.shape[1])
        return forward(input_ids=input_ids, **others)

    monkeypatch.setattr(conversation.model, "forward", counted)
    for turn, text in enumerate(["How are you today?", "Why?", "é"]):
        new = len(f"{text}\n".encode()) + (turn > 0)
        read.clear()
        conversation.ask(text, **SETTINGS, prefill_chunk_size=chunk)
        # all new tokens but the last are read too, one by one
        pieces = read[:-8]
        assert sum(pieces) == new and max(pieces) == min(chunk, new)
        assert read[-8:] == [1] * 8
    monkeypatch.undo()
    check_turn(conversation, "Once more", prefill_chunk_size=chunk)


def test_chunks_of_the_models_own_settings() -> None:
    """Guards the second turn where the size of chunks is the model's and not the call's."""
    conversation = new_conversation()
    conversation.model.generation_config.prefill_chunk_size = 4
    check_turn(conversation, "How are you today?")
    check_turn(conversation, "And otherwise?", prefill_chunk_size=3)
    check_turn(conversation, "I see.")


@pytest.mark.parametrize("chunk", [0, -1, 2.5])
def test_chunks_of_no_size_are_refused(chunk: Any) -> None:
    """Guards against a prompt that is never read, or that stays behind after a refused call."""
    conversation, watch = new_conversation(), Stopwatch()
    with pytest.raises((ValueError, TypeError), match="prefill_chunk_size: expected"):
        conversation.ask("How are you?", watch, **SETTINGS, prefill_chunk_size=chunk)
    assert conversation.ids == []
    assert not watch._times
    check_turn(conversation, "How are you?")


def test_interrupted_answer_stays_and_the_conversation_goes_on() -> None:
    """Guards Ctrl-C: what was said until then is part of the text, with nothing lost or read twice."""
    conversation = new_conversation()
    check_turn(conversation, "How are you today?")
    before = len(conversation.ids)
    with pytest.raises(KeyboardInterrupt):
        conversation.ask("Why?", Interrupting(), **SETTINGS)
    assert len(conversation.ids) == before + 5 + 3
    check_turn(conversation, "Once more")
    assert conversation.prefilled <= 12


@pytest.mark.parametrize("tokens", [5, 400])
def test_interruption_inside_a_forward_goes_on(tokens: int) -> None:
    """Guards layers out of step, which cost the cache of a long text but not the conversation."""
    conversation = new_conversation()
    check_turn(conversation, "How are you today?")

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = conversation.model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        conversation.ask("a" * tokens, **SETTINGS)
    hook.remove()
    check_turn(conversation, "Why?")


def test_end_token_ends_the_answer_and_not_the_conversation() -> None:
    """Guards an end of document in the middle of a text."""
    conversation = new_conversation()
    ids = torch.tensor([list(b"Hello\n")])
    said = greedy_without_cache(conversation.model, ids, 9)[0].tolist()
    conversation.model.generation_config.eos_token_id = said[4]
    conversation.ask("Hello", **SETTINGS)
    assert conversation.ids == list(b"Hello\n") + said[: said.index(said[4])]
    conversation.model.generation_config.eos_token_id = None
    check_turn(conversation, "Go on")


def test_template_is_used_and_its_common_beginning_reused() -> None:
    """Guards models that were trained on messages; a template may write an old answer in another way."""
    conversation = new_conversation()
    conversation.tokenizer.chat_template = TEMPLATE
    conversation.ask("How are you today, dear machine?", **SETTINGS)
    assert bytes(conversation.ids[:6]) == b"[user]"
    conversation.ask("Why?", **SETTINGS)
    assert b"[user]Why?\n[assistant]" in bytes(token % 256 for token in conversation.ids)
    prompt = torch.tensor([conversation.ids[:-9]])
    assert conversation.ids[-9:] == greedy_without_cache(conversation.model, prompt, 9)[0].tolist()
    assert conversation.prefilled < 60 < len(conversation.ids)


def test_turn_that_the_template_refuses_is_forgotten() -> None:
    """Guards the next turn: many templates want users and models to take turns."""
    conversation = new_conversation()
    conversation.tokenizer.chat_template = STRICT + TEMPLATE
    conversation.ask("How are you?", **SETTINGS)
    before = list(conversation.ids)
    with pytest.raises(TemplateError, match="empty"):
        conversation.ask(" ", **SETTINGS)
    assert conversation.ids == before
    conversation.ask("Why?", **SETTINGS)
    assert b"[user]Why?\n[assistant]" in bytes(token % 256 for token in conversation.ids)


def test_reset_forgets_everything() -> None:
    """Guards a new conversation from the old one."""
    conversation = new_conversation()
    check_turn(conversation, "How are you today?")
    conversation.reset()
    assert conversation.ids == []
    check_turn(conversation, "Why?")


@pytest.mark.parametrize("setting", [{"bogus": 1}, {"num_beams": 2}], ids=str)
def test_refused_call_is_no_turn(setting: dict[str, Any]) -> None:
    """Guards against a question that stands twice in the conversation when it is asked again."""
    conversation = new_conversation()
    check_turn(conversation, "How are you today?")
    before = list(conversation.ids)
    with pytest.raises(ValueError, match="bogus|beam"):
        conversation.ask("Why?", **SETTINGS, **setting)
    assert conversation.ids == before
    check_turn(conversation, "Why?")


def test_guessed_answers_in_every_turn() -> None:
    """Guards a second turn, to which transformers reads the whole prompt again."""
    conversation = new_conversation()
    for text in ("How are you today?", "Why?"):
        prompt = [*conversation.ids, *f"{text}\n".encode()]
        conversation.ask(text, **SETTINGS, prompt_lookup_num_tokens=3)
        expected = greedy_without_cache(conversation.model, torch.tensor([prompt]), 9)[0].tolist()
        assert conversation.ids == prompt + expected
    check_turn(conversation, "And now?")


def test_text_that_is_no_unicode_is_refused() -> None:
    conversation = new_conversation()
    with pytest.raises(ValueError, match="^text: expected UTF-8, got something else at character 1"):
        conversation.ask("a\udcff", **SETTINGS)
    assert conversation.ids == []


def test_beginning_is_marked_once() -> None:
    """Guards against a tokenizer that puts its first mark before every turn."""
    tokenizer = byte_tokenizer()
    plain = type(tokenizer).__call__

    class Marking(type(tokenizer)):  # type: ignore[misc]
        def __call__(self, text: str, *, add_special_tokens: bool = True, **others: Any) -> Any:
            encoded = plain(self, text, **others)
            encoded["input_ids"] = [257] * add_special_tokens + encoded["input_ids"]
            return encoded

    tokenizer.__class__ = Marking
    conversation = Conversation(model_of(eos_token_id=None), tokenizer)
    for text in ("one", "two"):
        conversation.ask(text, suppress_tokens=[257], **SETTINGS)
    assert conversation.ids.count(257) == 1
    assert conversation.ids[0] == 257


def test_empty_text_is_refused() -> None:
    """Guards against a turn of nothing but a line's end, which is no text."""
    conversation = new_conversation()
    with pytest.raises(ValueError, match="^text: expected some text"):
        conversation.ask("", **SETTINGS)
    assert conversation.ids == []
