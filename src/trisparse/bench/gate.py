"""The check that comes before any time: a contender's output and gradients against the fp64 reference."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trisparse.bench.cases import Case, Tensors
from trisparse.bench.contender import WIDE_FACTOR, Contender
from trisparse.config import SparseConfig

# up to here every row is compared: the reference is quadratic in memory
WHOLE_TOKENS = 1024
# at the full length this many rows are compared, the last one among them
SAMPLE_ROWS = 6


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The worst error over what the budget allows."""

    worst_ratio: float

    @property
    def passed(self) -> bool:
        # a NaN ratio is not at most 1 either
        return self.worst_ratio <= 1.0


@dataclass
class Gate:
    """The check of every case of one benchmark. It remembers short sequences, which many lengths share."""

    device: torch.device
    short_ratios: dict[tuple[str, Case, bool], float] = field(default_factory=dict)

    def judge(self, contender: Contender, case: Case, *, gradients: bool) -> Verdict:
        """Compare all rows of a short sequence with the fp64 reference, and some rows at the full length.

        Gradients of all inputs are compared too if asked for; at the full length they are those of the
        sampled rows. The reference reads the blocks the contender chose, which are judged by their scores.
        """
        ratios = [self._judge_short(contender, case, gradients)]
        if case.tokens > WHOLE_TOKENS:
            tensors = contender.inputs(case, self.device)
            ratios.append(_judge_rows(contender, tensors, case.config, _sample_rows(case.tokens), gradients))
        return Verdict(worst_ratio=worst(ratios))

    def _judge_short(self, contender: Contender, case: Case, gradients: bool) -> float:
        short = replace(case, tokens=min(case.tokens, WHOLE_TOKENS))
        key = (contender.name, short, gradients)
        if key not in self.short_ratios:
            tensors, rows = contender.inputs(short, self.device), [slice(0, short.tokens)]
            self.short_ratios[key] = _judge_rows(contender, tensors, case.config, rows, gradients)
        return self.short_ratios[key]


def _sample_rows(tokens: int) -> list[slice]:
    """The last row and others by chance, ascending, each a slice of its own."""
    others = torch.randperm(tokens - 1, generator=torch.Generator().manual_seed(0))
    places = [*others[: SAMPLE_ROWS - 1].tolist(), tokens - 1]
    return [slice(place, place + 1) for place in sorted(places)]


def _judge_rows(
    contender: Contender, tensors: Tensors, config: SparseConfig, rows: Sequence[slice], gradients: bool
) -> float:
    ids = contender.select(tensors, config)
    chosen = [contender.selection_ratio(tensors, ids, place, config) for place in rows]
    if not worst(chosen) <= 1.0:
        # the reference cannot be asked about ids that break the contract
        return worst(chosen)

    def actual(leaves: Tensors) -> list[Tensor]:
        out = contender.attend(leaves, config)
        return [out[:, place] for place in rows]

    def expected(leaves: Tensors) -> list[Tensor]:
        return [contender.expect(leaves, ids, place, config) for place in rows]

    results = _Results.of(actual, tensors, gradients)
    low = _Results.of(expected, tensors, gradients)
    gold = _Results.of(expected, tuple(tensor.double() for tensor in tensors), gradients)
    return worst([*chosen, *_compare(results, low, gold, contender.gradient_factor)])


@dataclass(frozen=True)
class _Results:
    rows: list[Tensor]
    gradients: Tensors

    @classmethod
    def of(cls, function: Callable[[Tensors], list[Tensor]], tensors: Tensors, gradients: bool) -> "_Results":
        """The rows that `function` returns, and the gradients of all tensors by a random sum of them."""
        if not gradients:
            with torch.no_grad():
                return cls(function(tensors), ())
        leaves = tuple(tensor.detach().requires_grad_() for tensor in tensors)
        rows = function(leaves)
        grads = torch.autograd.grad(rows, leaves, [_weights(row) for row in rows])
        return cls([row.detach() for row in rows], grads)


def _weights(row: Tensor) -> Tensor:
    """Numbers that bf16 holds exactly, so that every precision differentiates the same sum."""
    numbers = torch.randint(-8, 9, row.shape, generator=torch.Generator().manual_seed(1))
    return (numbers / 8).to(row)


def _compare(actual: _Results, low: _Results, gold: _Results, factor: float) -> list[float]:
    rows = zip(actual.rows, low.rows, gold.rows, strict=True)
    grads = zip(actual.gradients, low.gradients, gold.gradients, strict=True)
    ratios = [error_ratio(*grad, gradient=True, wide_factor=factor) for grad in grads]
    return [*(row_ratio(*row) for row in rows), *ratios]


def row_ratio(actual: Tensor, low: Tensor, gold: Tensor) -> float:
    """The worst `error_ratio` of a row of [B, rows, H, E]: early rows are large and would hide a late one."""
    if actual.shape != gold.shape:
        return math.inf
    rows = zip(actual.unbind(1), low.unbind(1), gold.unbind(1), strict=True)
    return worst([error_ratio(*row) for row in rows])


def error_ratio(
    actual: Tensor,
    low: Tensor,
    gold: Tensor,
    *,
    gradient: bool = False,
    wide_factor: float = WIDE_FACTOR,
) -> float:
    """max|actual - gold| / (k * max|low - gold| + 2 * eps * max|gold|); right if at most 1.

    `low` is the reference in the dtype of `actual`, `gold` in fp64. k is 2, for gradients 3, and
    `wide_factor` in fp32 and wider; eps is one rounding, 2 ** -8 in bf16. Infinite where shape, dtype, or the
    places of NaN, inf and -inf differ.
    """
    if actual.shape != gold.shape or actual.dtype != low.dtype:
        return math.inf
    if actual.numel() == 0:
        return 0.0
    # a number too large for the dtype is rightly infinite in it
    rounded = gold.to(actual.dtype)
    if not _same_specials(actual, rounded):
        return math.inf
    dtype, actual, low = actual.dtype, actual.double(), low.double()
    finite = rounded.isfinite()
    # a reference that overflows where the exact result does not allows nothing
    low = low.where(low.isfinite(), gold.double())
    actual, low, gold = (tensor.where(finite, 0.0) for tensor in (actual, low, gold))
    wide = torch.finfo(dtype).bits >= 32
    factor = wide_factor if wide else 3 if gradient else 2
    # twice one rounding is what torch calls eps
    allowed = factor * (low - gold).abs().max() + torch.finfo(dtype).eps * gold.abs().max()
    error = (actual - gold).abs().max()
    return (error / allowed).item() if error > 0 else 0.0


def _same_specials(actual: Tensor, rounded: Tensor) -> bool:
    return all(
        torch.equal(special(actual), special(rounded))
        for special in (torch.isnan, torch.isposinf, torch.isneginf)
    )


def worst(ratios: Sequence[float]) -> float:
    """The greatest; NaN counts as infinite, because `max` would lose it."""
    return max((math.inf if math.isnan(ratio) else ratio for ratio in ratios), default=0.0)
