"""A conversation whose cache lives as long as it does: each turn computes its new tokens alone."""

from typing import Any

import torch
from transformers import DynamicCache

from trisparse import validate
from trisparse.models.cache import cache_layers, cached_lengths
from trisparse.models.cache_name import CACHE_NAME

# settings of `generate` that make it guess tokens
_ASSISTED = ("assistant_model", "prompt_lookup_num_tokens")
_CHUNK = "prefill_chunk_size"
_HEEDED = (*_ASSISTED, _CHUNK)


class _Heard:
    """A streamer that keeps the new ids, so that an interrupted answer is known, and hands them on."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.ids: list[int] | None = None
        self._has_prompt = False

    def begin(self, prompt: torch.Tensor) -> None:
        """Hand the prompt on before `generate` does: who takes the time of its reading starts here."""
        self._has_prompt = True
        if self.inner is not None:
            self.inner.put(prompt.cpu())

    def put(self, ids: torch.Tensor) -> None:
        # the first call brings the prompt
        is_prompt = self.ids is None
        self.ids = [] if self.ids is None else self.ids + ids.flatten().tolist()
        if self.inner is not None and not (is_prompt and self._has_prompt):
            self.inner.put(ids)

    def end(self) -> None:
        if self.inner is not None:
            self.inner.end()


class Conversation:
    """Turns of a user and of a model, with one cache.

    With a chat template the turns are messages. Without one the text simply goes on: a turn is a line, and
    the model continues everything so far.

    Args:
        model: a TrisparseForCausalLM.
        tokenizer: its tokenizer.

    Attributes:
        ids: everything said, as the model reads it.
        cache: the decode state of all of `ids` but the newest.
        prefilled: tokens of the last turn that the cache did not hold yet.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.ids: list[int] = []
        self.prefilled = 0
        self.cache = DynamicCache(config=self.model.config)
        self._messages: list[dict[str, str]] = []

    def ask(self, text: str, streamer: Any = None, **settings: Any) -> str:
        """The model's answer to `text`; `settings` are those of `generate`, without beams.

        With `prefill_chunk_size` new text is read so many tokens at a time.

        If it is interrupted, what was said until then stays in the conversation. A call that fails before the
        first token of the answer is no turn.

        Raises:
            ValueError: no text, or no Unicode, or settings that `generate` refuses.
            TypeError: `prefill_chunk_size` is no int.
        """
        validate.unicode_text("text", text)
        if not text:
            raise ValueError("text: expected some text, got none")
        prompt = self._prompt(text)
        defaults = settings.get("generation_config") or self.model.generation_config
        settings = {name: getattr(defaults, name, None) for name in _HEEDED} | settings
        assisted = any(settings[name] is not None for name in _ASSISTED)
        if assisted:
            # transformers reads the whole prompt again then
            self.cache = DynamicCache(config=self.model.config)
        self._reuse(prompt)
        ids = torch.tensor([prompt], device=self.model.device)
        heard = _Heard(streamer)
        try:
            if not assisted and settings[_CHUNK] is not None:
                self._read(ids, settings[_CHUNK], heard)
                settings[_CHUNK] = None
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                streamer=heard,
                **settings,
                **{CACHE_NAME: self.cache},
            )
        except BaseException as error:
            if heard.ids or isinstance(error, KeyboardInterrupt):
                self._remember(text, prompt, heard.ids or [])
            raise
        return self._remember(text, prompt, heard.ids or [])

    def _prompt(self, text: str) -> list[int]:
        """Everything said and `text`, ready to be answered."""
        if not self.tokenizer.chat_template:
            # a mark of the beginning stands once, before everything
            return self.ids + self.tokenizer(f"{text}\n", add_special_tokens=not self.ids)["input_ids"]
        messages = [*self._messages, {"role": "user", "content": text}]
        rendered = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self._encode_template(rendered)

    def _encode_template(self, rendered: str) -> list[int]:
        """A template writes its own special tokens: they are read as such, and none are added."""
        return self.tokenizer(rendered, add_special_tokens=False, split_special_tokens=False)["input_ids"]

    def _reuse(self, prompt: list[int]) -> None:
        """Have the cache hold a true beginning of `prompt`, as long as it can be."""
        held = self._held()
        shared = 0
        # at least one token must be read to get an answer
        for old, new in zip(self.ids[:held], prompt[:-1], strict=False):
            if old != new:
                break
            shared += 1
        try:
            self.cache.crop(shared - held)
        except ValueError:
            # further back than the rings remember
            shared = 0
        if shared == 0:
            self.cache = DynamicCache(config=self.model.config)
        self.prefilled = len(prompt) - shared

    @torch.no_grad()
    def _read(self, ids: torch.Tensor, chunk: int, heard: _Heard) -> None:
        """Have the cache hold all of `ids` [1, T] but the last `chunk` or less, read so many at a time.

        By `generate` of transformers before 5.21, tokens that the cache holds would be read again.
        """
        if validate.integer(_CHUNK, chunk) < 1:
            raise ValueError(f"{_CHUNK}: expected at least 1, got {chunk}")
        starts = range(self._held(), ids.shape[1] - chunk, chunk)
        if starts:
            heard.begin(ids)
        for start in starts:
            self.model(ids[:, start : start + chunk], past_key_values=self.cache, logits_to_keep=1)

    def _held(self) -> int:
        """Tokens in the cache; 0 if an interruption left its layers out of step."""
        layers = cache_layers(self.cache, self.model.config.num_hidden_layers)
        try:
            lengths = cached_lengths(layers)
        except ValueError:
            lengths = []
        slots = {layer.slots for layer in layers}
        if slots != set(lengths):
            self.cache = DynamicCache(config=self.model.config)
            return 0
        return lengths[0]

    def _remember(self, asked: str, prompt: list[int], answer: list[int]) -> str:
        """Both sides of the turn at once: many templates refuse two messages of the user in a row."""
        end = self.model.generation_config.eos_token_id
        ends = end if isinstance(end, list) else [end]
        if answer and answer[-1] in ends:
            # read by nobody, and an end inside a conversation means nothing
            answer = answer[:-1]
        self.ids = prompt + answer
        text = self.tokenizer.decode(answer, skip_special_tokens=True)
        self._messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": text}]
        return text
