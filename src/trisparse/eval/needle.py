"""Needles in a haystack: a number assigned to a name somewhere in a long text, asked for at its end.

The text is held-out source code, the needle an assignment like `SECRET_TALUKO = "4071936"`. The prompt ends
with `SECRET_TALUKO = "`, so that a plain language model, never taught to answer questions, goes on with the
number. Nothing is downloaded, and nothing is generated token by token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy
from numpy.typing import NDArray
from torch import Tensor, nn

from trisparse.eval.answers import Question, read_answers
from trisparse.eval.forward import evaluating, log_probabilities

Scoring = Literal["rank", "exact"]

COLUMNS = ["attention", "context_length", "depth_percent", "score", "samples"]
DIGITS = 7
DISTRACTORS = 9

# both of one length for every needle, whatever its name: see `_name`
_QUERY_BYTES = len('SECRET_TALUKO = "')
_NEEDLE_BYTES = _QUERY_BYTES + DIGITS + len('"')
# the needle on a line of its own, and the line end before the query
_ADDED_BYTES = 1 + _NEEDLE_BYTES + 1 + 1 + _QUERY_BYTES


@dataclass(frozen=True, kw_only=True)
class Needle:
    """One question.

    Attributes:
        prompt: what the model reads, from the haystack's first byte to the query's last.
        start: where in the prompt the needle's line begins.
        value: the digits that answer it; once in the prompt, in the needle.
        distractors: other digits, drawn like the value; none of them in the prompt.
    """

    prompt: bytes
    start: int
    value: bytes
    distractors: tuple[bytes, ...]


def needle_rows(
    model: nn.Module,
    haystack: NDArray[Any],
    *,
    attention: str,
    lengths: Sequence[int],
    depths: Sequence[float],
    samples: int,
    seed: int,
    scoring: Scoring = "rank",
    batch_size: int = 10,
    share_prompt: bool = False,
) -> list[dict[str, str]]:
    """The share of needles found at each context length and depth, one row of `COLUMNS` for each pair.

    A cell's needles depend on the haystack, the seed, the length and the depth alone: every model, and every
    choice of other cells, meets the same ones.

    Args:
        model: a transformers causal language model over byte tokens, or a module that is called like one.
        haystack: token ids, integers `[tokens]`; ids above 255, which end documents, are taken out.
        attention: the name in the rows' first column.
        lengths: prompt lengths in tokens. The model reads `DIGITS - 1` tokens more, the answer's own.
        depths: in percent, 0 at the very start and 100 right before the query.
        samples: needles in each cell.
        seed: 0..2**32-1.
        scoring: "exact" counts a needle if each digit, those before it given, is the single likeliest token:
            what greedy decoding would write. "rank" counts it if the value is likelier, by mean
            log-probability of its digits, than each of `DISTRACTORS` others; a model that cannot look back
            reaches about 0.1. In both a tie is not a win.
        batch_size: sequences in one forward, rounded down to whole needles but at least one. "rank" needs 10
            sequences for each needle, "exact" one.
        share_prompt: True reads a prompt once for its 10 sequences and goes on from the model's cache:
            several times cheaper, and a fault of that cache is then part of what is measured.

    Raises:
        TypeError: the haystack is not a NumPy array of integers.
        ValueError: an argument out of its range, two equal lengths or depths, a haystack shorter than the
            longest prompt, or a model whose log-probabilities are not finite.
    """
    _check_grid(lengths, depths, samples, scoring, batch_size)
    text = haystack_text(haystack)
    # drawn before the first forward, so that a haystack too short fails at once
    cells = {
        (length, depth): [
            make_needle(text, context_length=length, depth_percent=depth, seed=seed, sample=sample)
            for sample in range(samples)
        ]
        for length in lengths
        for depth in depths
    }
    rows = []
    with evaluating(model):
        for (length, depth), needles in cells.items():
            found = _count_found(model, needles, scoring, batch_size, share_prompt)
            values = [attention, str(length), f"{depth:g}", f"{found / samples:.6g}", str(samples)]
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def haystack_text(haystack: NDArray[Any]) -> bytes:
    """The bytes of a token stream; ids that are no bytes are left out.

    Without them because a model trained on packed documents takes an end of a document for the end of all
    that may be looked back on.

    Raises:
        TypeError: not a NumPy array of integers.
        ValueError: several axes.
    """
    if not isinstance(haystack, numpy.ndarray) or not numpy.issubdtype(haystack.dtype, numpy.integer):
        got = haystack.dtype if isinstance(haystack, numpy.ndarray) else type(haystack).__name__
        raise TypeError(f"haystack: expected a NumPy array of integers, got {got}")
    if haystack.ndim != 1:
        raise ValueError(f"haystack: expected one axis [tokens], got shape {list(haystack.shape)}")
    return haystack[haystack < 256].astype(numpy.uint8).tobytes()


def make_needle(
    text: bytes, *, context_length: int, depth_percent: float, seed: int, sample: int = 0
) -> Needle:
    """A needle in a stretch of `text`: the same for the same arguments, on every machine.

    Args:
        text: the haystack; a stretch of it that begins anywhere is used.
        context_length: bytes in the prompt, the query included.
        depth_percent: share of the stretch that stands before the needle, 0..100; rounded to whole bytes.
        seed: 0..2**32-1.
        sample: tells apart the needles of one cell.

    Raises:
        ValueError: an argument out of its range, or text shorter than the stretch.
    """
    size = context_length - _ADDED_BYTES
    _check_place(text, context_length, depth_percent, seed)
    # RandomState is frozen (NEP 19): `default_rng` may change with a release, and all needles with it
    generator = numpy.random.RandomState([seed, context_length, round(1000 * depth_percent), sample])
    begin = int(generator.randint(len(text) - size + 1))
    stretch = text[begin : begin + size]
    query = f'SECRET_{_name(generator, stretch)} = "'.encode()
    value, *distractors = _values(generator, stretch)
    before = round(size * depth_percent / 100)
    line = b"\n" + query + value + b'"\n'
    prompt = stretch[:before] + line + stretch[before:] + b"\n" + query
    return Needle(prompt=prompt, start=before + 1, value=value, distractors=tuple(distractors))


def _name(generator: numpy.random.RandomState, stretch: bytes) -> str:
    """Six letters that can be read aloud and that do not occur in the stretch."""
    while True:
        name = "".join(_pick(generator, letters) for letters in ("BDFGKLMNPRSTVZ", "AEIOU") * 3)
        if name.encode() not in stretch:
            return name


def _values(generator: numpy.random.RandomState, stretch: bytes) -> list[bytes]:
    """The value and its distractors: different numbers, none of them in the stretch."""
    values: dict[bytes, None] = {}
    while len(values) < 1 + DISTRACTORS:
        value = "".join(_pick(generator, "0123456789") for _ in range(DIGITS)).encode()
        if value not in stretch:
            values[value] = None
    return list(values)


def _pick(generator: numpy.random.RandomState, letters: str) -> str:
    return letters[int(generator.randint(len(letters)))]


def _found(logits: Tensor, digits: Tensor, scoring: Scoring) -> bool:
    """Whether a needle is found by what the model makes of its answers, `[n, 7, V]` and `[n, 7]`."""
    # refuses NaN, which would compare like a miss
    means = log_probabilities(logits, digits).mean(1)
    if scoring == "rank":
        return bool((means[0] > means[1:]).all())
    chosen = logits.gather(2, digits[:, :, None])
    return bool(((logits >= chosen).sum(2) == 1).all())


def _count_found(
    model: nn.Module, needles: Sequence[Needle], scoring: Scoring, batch_size: int, share_prompt: bool
) -> int:
    """How many of the needles, all of one length, the model finds."""
    others = [needle.distractors if scoring == "rank" else () for needle in needles]
    questions = [
        Question(prompt=needle.prompt, answers=(needle.value, *distractors))
        for needle, distractors in zip(needles, others, strict=True)
    ]
    size = len(questions[0].answers)
    # whole questions in each batch, so that each is scored as soon as it is read
    batches = read_answers(
        model, questions, batch_size=max(1, batch_size // size) * size, share_prompt=share_prompt
    )
    return sum(
        _found(logits, digits, scoring)
        for batch in batches
        for logits, digits in zip(*(part.split(size) for part in batch), strict=True)
    )


def _check_place(text: bytes, context_length: int, depth_percent: float, seed: int) -> None:
    if context_length < _ADDED_BYTES:
        raise ValueError(
            f"context_length: expected at least {_ADDED_BYTES}, needle and query alone, got {context_length}"
        )
    if not 0 <= depth_percent <= 100:
        raise ValueError(f"depth_percent: expected 0..100, got {depth_percent}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: expected 0..{2**32 - 1}, got {seed}")
    size = context_length - _ADDED_BYTES
    if len(text) < size:
        raise ValueError(
            f"haystack: expected at least {size} bytes for a prompt of {context_length}, got {len(text)}; "
            "give more held-out text or shorter lengths"
        )


def _check_grid(
    lengths: Sequence[int], depths: Sequence[float], samples: int, scoring: str, batch_size: int
) -> None:
    for name, values in (("lengths", lengths), ("depths", depths)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name}: expected at least one and no two alike, got {list(values)}")
    for name, count in (("samples", samples), ("batch_size", batch_size)):
        if count < 1:
            raise ValueError(f"{name}: expected at least 1, got {count}")
    if scoring not in get_args(Scoring):
        raise ValueError(f"scoring: expected 'rank' or 'exact', got {scoring!r}")
