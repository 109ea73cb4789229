"""End to end: how fast a whole model reads a prompt and writes after it, with NSA and with full attention."""

import gc
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor
from transformers import StaticCache

from trisparse.bench.cases import dtype_name
from trisparse.bench.table import environment
from trisparse.models.cache import new_cache
from trisparse.models.cache_name import CACHE_NAME
from trisparse.models.causal_lm import TrisparseForCausalLM
from trisparse.models.modeling import Block
from trisparse.models.presets import model_config
from trisparse.nn.cache import STEP, BatchCache
from trisparse.report.rows import Rows

COLUMNS = ["attention", "preset", "parameters", "weights", "tokens", "filled", "dtype", "batch"]
COLUMNS += ["prefill_tokens_per_second", "decode_ms", "decode_tokens_per_second", "decode_steps"]
COLUMNS += ["captured", "cache_megabytes"]
COLUMNS += ["device", "threads", "cpu_flags", "torch", "trisparse", "commit", "date"]

# tokens: more than decoding kernels take, and on a GPU more than the paper's selection reaches
_WARM_UP = 256
_GPU_WARM_UP = 2048
# steps that are not timed: room that grows, threads that wake, the capture
_FIRST_STEPS = 4


def run(
    lengths: Sequence[int],
    *,
    preset: str = "base",
    attentions: Sequence[str] = ("nsa", "full"),
    dtype: torch.dtype = torch.bfloat16,
    prefill_limit: int = 16384,
    chunk: int = 2048,
    steps: int = 24,
    batch: int = 1,
    device: torch.device | str = "cpu",
    on_row: Callable[[dict[str, str]], None] | None = None,
) -> Rows:
    """Measure prefill and decode at each length of context, for each kind of attention.

    Weights are random: speed does not depend on what a model has learned. The prompt is read in chunks
    through the cache, from one length to the next, and its speed counts from the first token. Beyond
    `prefill_limit` tokens the cache is filled with random keys and values instead, and only decode is
    measured. A step is a whole forward of the model for one token, the cache's growth included; on a GPU it
    is captured, as `generate` does it, in a cache of static size, and each length begins anew.

    Args:
        lengths: tokens in the cache before the first decoded one.
        attentions: kinds of attention as `TrisparseConfig.attention` takes them.
        chunk: tokens of a prompt that are read at once.
        steps: decoded tokens of each case, at most 64; decode_ms is their median.
        batch: sequences side by side, all of one length; speeds count the tokens of all.

    Returns:
        Rows with COLUMNS.

    Raises:
        ValueError: an argument is wrong.
    """
    if not 1 <= steps <= STEP:
        raise ValueError(f"steps: expected 1 .. {STEP}, what a cache takes back, got {steps}")
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1, got {chunk}")
    if batch < 1:
        raise ValueError(f"batch: expected at least 1, got {batch}")
    if any(length < 1 for length in lengths):
        raise ValueError(f"lengths: expected at least 1 token, got {list(lengths)}")
    rows: Rows = []
    for attention in attentions:
        session = _Session(preset, attention, dtype, chunk, batch, torch.device(device))
        for length in sorted(set(lengths)):
            seconds = session.read(length) if length <= prefill_limit else session.fill(length)
            row = _row(session, length, seconds, session.decode(steps))
            rows.append(row)
            if on_row:
                on_row(row)
        del session
        gc.collect()
    return rows


class _Session:
    """One model and sequences that grow side by side."""

    def __init__(
        self,
        preset: str,
        attention: str,
        dtype: torch.dtype,
        chunk: int,
        batch: int = 1,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (it never changes)
    ) -> None:
        torch.manual_seed(0)
        self.preset, self.attention, self.chunk = preset, attention, chunk
        self.batch, self.device = batch, device
        config = model_config(preset, attention=attention)
        self.model: Any = TrisparseForCausalLM(config).eval()
        self.model.to(device, dtype)
        self.call = self.model.get_compiled_call()
        self._warm_up()

    def _warm_up(self) -> None:
        """What only first calls take, the build of kernels among it, belongs to no contender's time."""
        counts = [_WARM_UP, 1]
        if self.device.type == "cuda":
            # the first chunk, those after it, and steps take different kernels
            counts = [_GPU_WARM_UP, _GPU_WARM_UP] + [1] * _FIRST_STEPS
        self._begin(sum(counts))
        with torch.no_grad():
            for count in counts:
                self._forward(count)
        self._begin(0)

    def _begin(self, room: int) -> None:
        """With an empty cache."""
        self.cache: Any = new_cache(self.model, room)
        self.seconds = 0.0

    @property
    def states(self) -> list[BatchCache]:
        """The decode state of each layer."""
        return [layer.state for layer in self.cache.layers]

    def _forward(self, count: int) -> None:
        ids: Tensor = torch.randint(self.model.config.vocab_size, (self.batch, count), device=self.device)
        self.call(input_ids=ids, logits_to_keep=1, **{CACHE_NAME: self.cache})

    def _now(self) -> float:
        """Seconds, when all that was asked for is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter()

    @torch.no_grad()
    def read(self, length: int) -> float:
        """Read on to `length` tokens; seconds since the first token."""
        if isinstance(self.cache, StaticCache):
            # full attention would read the room that longer contexts need
            self._begin(length + STEP)
        start = self._now()
        while self.cache.get_seq_length() < length:
            self._forward(min(self.chunk, length - self.cache.get_seq_length()))
        self.seconds += self._now() - start
        return self.seconds

    @torch.no_grad()
    def fill(self, length: int) -> None:
        """Start anew with `length` tokens of random keys and values."""
        self._begin(length + STEP)
        for layer, block in zip(self.cache.layers, self.model.model.layers, strict=True):
            attention = cast(Block, block).attention
            layer.state = attention.new_cache(layer.capacity)
            key = attention.k_proj.weight.new_empty(
                self.batch, 0, attention.num_kv_groups, attention.head_dim
            )
            value = key.new_empty(self.batch, 0, attention.num_kv_groups, attention.value_dim)
            names = layer.state.new_buffers()
            likes = {name: value if name.endswith("value") else key for name in names}
            layer.state.reserve(likes, [length] * self.batch)
            for buffer in layer.state.buffers.values():
                buffer.data.normal_()
            layer.state.commit([length] * self.batch)
            layer.slots = length

    @torch.no_grad()
    def decode(self, steps: int) -> list[float]:
        """Seconds of each of `steps` tokens, which are taken back afterwards."""
        seconds = []
        for _ in range(min(STEP, steps + _FIRST_STEPS)):
            start = self._now()
            self._forward(1)
            seconds.append(self._now() - start)
        self.cache.crop(-len(seconds))
        return seconds[-steps:]


def _row(session: _Session, length: int, prefill: float | None, decode: Sequence[float]) -> dict[str, str]:
    model, step = session.model, median(decode)
    row = {
        "attention": session.attention,
        "preset": session.preset,
        "parameters": str(model.num_parameters()),
        "weights": "random",
        "tokens": str(length),
        "filled": "random" if prefill is None else "prefill",
        "dtype": dtype_name(model.dtype),
        "batch": str(session.batch),
        "prefill_tokens_per_second": "" if prefill is None else f"{session.batch * length / prefill:.1f}",
        "decode_ms": f"{1000 * step:.3f}",
        "decode_tokens_per_second": f"{session.batch / step:.2f}",
        "decode_steps": str(len(decode)),
        "captured": "yes" if session.call.is_stepping else "no",
        "cache_megabytes": f"{sum(state.nbytes() for state in session.states) / 1e6:.2f}",
        **environment(session.device),
    }
    return {column: row[column] for column in COLUMNS}
