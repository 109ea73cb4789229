"""When a number is right: the one acceptance rule of every comparison with the reference.

The inputs are drawn in a dtype and promoted, so that all see the same values. *Gold* is the reference in
fp64, *low* the reference in the inputs' dtype, *actual* what is judged: it may be a small multiple worse than
*low* is, plus one rounding, in the worst element and, more strictly, on average.
"""

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.reference.attend import attention_probabilities
from trisparse.reference.blocks import forced_blocks, visible_compressed
from trisparse.reference.score import block_importance, group_importance

# in these the error is that of a few sums: their order alone can multiply it
_SUMS_DOMINATE = (torch.float32, torch.float64)
_TIE_ULPS = 8


def _factors(dtype: torch.dtype, gradient: bool) -> tuple[float, float]:
    """Of the largest and of the mean error of low."""
    if dtype in _SUMS_DOMINATE:
        return 10.0, 10.0
    # a kernel's backward starts from the output as rounded, autograd's from the output before that
    return (3.0, 2.0) if gradient else (2.0, 1.25)


def _fail(name: str, why: str, seed: int | None) -> None:
    seed_text = "" if seed is None else f"; seed {seed}"
    raise AssertionError(f"{name}: {why}{seed_text}")


def _place(flat_index: int, shape: torch.Size) -> list[int]:
    place = []
    for size in reversed(shape):
        place.append(flat_index % size)
        flat_index //= size
    return place[::-1]


def _check_special(name: str, actual: Tensor, gold: Tensor, seed: int | None) -> None:
    """NaN, inf and -inf stand where gold, rounded to the actual dtype, has them."""
    rounded = gold.to(actual.dtype)
    for what, test in (("NaN", torch.isnan), ("inf", torch.isposinf), ("-inf", torch.isneginf)):
        wrong = test(actual) != test(rounded)
        if wrong.any():
            first = _place(int(wrong.flatten().int().argmax()), wrong.shape)
            share = wrong.double().mean().item()
            _fail(name, f"{what} in the wrong places: first at {first}, {share:.2%} of the elements", seed)


def assert_within_budget(
    name: str,
    actual: Tensor,
    low: Tensor,
    gold: Tensor,
    *,
    gradient: bool = False,
    cancelling: float = 0.0,
    seed: int | None = None,
) -> None:
    """`actual` is about as close to `gold` as `low` is.

    With eps the largest relative error of one rounding to the actual dtype, 2 ** -8 for bf16:
    max|actual - gold| <= k * max|low - gold| + 2 * eps * max|gold|, k = 2 for outputs, 3 for gradients;
    mean|actual - gold| <= k * mean|low - gold| + eps * mean|gold|, k = 1.25 for outputs, 2 for gradients.
    In fp32 all k are 10. In fp64 low is gold, so both terms in eps are 32 times as large.

    `cancelling` is the size of terms that may cancel to nothing in the results, as those of d query do where
    one key is seen: each bound is wider by 4 roundings of such a term in the dtype of the sums.

    Raises:
        AssertionError: another shape or dtype, NaN or inf in other places, or an error over the budget; says
            where the worst element is, how many are bad, and the seed.
    """
    if actual.shape != gold.shape or low.shape != gold.shape:
        shapes = [list(x.shape) for x in (actual, low, gold)]
        _fail(name, f"shapes of actual, low and gold differ: {shapes}", seed)
    if actual.dtype != low.dtype:
        _fail(name, f"expected dtype {low.dtype}, got {actual.dtype}", seed)
    # where gold is: a GPU compares a long sequence's gradients in the time that a CPU takes to fetch them
    actual, low, gold = (x.detach().to(gold.device) for x in (actual, low, gold))
    _check_special(name, actual, gold, seed)
    finite = gold.to(actual.dtype).isfinite()
    if not finite.any():
        return
    exact = gold.double().where(finite, 0.0)
    # a reference that overflows where the exact result does not allows nothing
    low = low.double().where(low.isfinite(), exact)
    error = (actual.double().where(finite, 0.0) - exact).abs()
    low_error = (low.double().where(finite, 0.0) - exact).abs()
    eps = torch.finfo(actual.dtype).eps / 2 * (32 if actual.dtype == torch.float64 else 1)
    max_factor, mean_factor = _factors(actual.dtype, gradient)
    sums = torch.finfo(torch.promote_types(actual.dtype, torch.float32))
    floor = 2 * sums.eps * cancelling
    bound = max_factor * low_error.max() + 2 * eps * exact.abs().max() + floor
    mean_bound = mean_factor * low_error.mean() + eps * exact.abs().mean() + floor
    if error.max() > bound:
        worst = int(error.argmax())
        share = (error > bound).double().mean().item()
        _fail(
            name,
            f"worst error {error.max():.3e} over {bound:.3e} at {_place(worst, error.shape)}: "
            f"got {actual.flatten()[worst]}, expected {exact.flatten()[worst]}; "
            f"{share:.2%} of the elements are bad",
            seed,
        )
    if error.mean() > mean_bound:
        worst = int(error.argmax())
        share = (error > mean_bound).double().mean().item()
        _fail(
            name,
            f"mean error {error.mean():.3e} over {mean_bound:.3e}, worst at {_place(worst, error.shape)}: "
            f"got {actual.flatten()[worst]}, expected {exact.flatten()[worst]}; {share:.2%} of the elements "
            "are over that mean",
            seed,
        )


def selection_ranks(
    query: Tensor, key_cmp: Tensor, config: SparseConfig, *, scale: float | None = None, query_start: int = 0
) -> Tensor:
    """What the reference ranks blocks by: [B, Tq, G, J], +inf if forced, -inf if no candidate."""
    scale = query.shape[3] ** -0.5 if scale is None else scale
    positions = torch.arange(query_start, query_start + query.shape[1])
    visible = visible_compressed(positions, key_cmp.shape[1], config)
    probabilities, _ = attention_probabilities(query, key_cmp, visible[None, None], scale)
    num_blocks = config.num_select_blocks(query_start + query.shape[1])
    by_head = probabilities.permute(0, 3, 1, 2, 4).flatten(2, 3)
    ranks = group_importance(block_importance(by_head, num_blocks, config), key_cmp.shape[2])
    for row, position in enumerate(positions.tolist()):
        ranks[:, row, :, forced_blocks(position, config)] = float("inf")
        ranks[:, row, :, position // config.select_block + 1 :] = float("-inf")
    return ranks


def compare_ids(actual: Tensor, gold_ids: Tensor, gold_scores: Tensor) -> None:
    """`actual` [B, T, G, S] chooses the blocks of `gold_ids`, or others that score the same.

    A block may be exchanged for another whose gold score differs by less than 8 ulp of fp32. `gold_scores` is
    what `selection_ranks` returns, so that no forced block and no block of the future can be exchanged.

    Raises:
        AssertionError: another shape or dtype, ids not ascending with -1 last, or a wrong set; says where.
    """
    assert actual.shape == gold_ids.shape, f"ids: expected {list(gold_ids.shape)}, got {list(actual.shape)}"
    assert actual.dtype == torch.int32, f"ids: expected int32, got {actual.dtype}"
    actual, gold_ids = actual.cpu(), gold_ids.cpu()
    for place in (actual != gold_ids).any(dim=-1).nonzero().tolist():
        batch, row, group = place
        got, wanted = actual[batch, row, group].tolist(), gold_ids[batch, row, group].tolist()
        text = f"ids at {place}: expected {wanted}, got {got}"
        used = [block for block in got if block != -1]
        ordered = sorted(set(used)) + [-1] * (len(got) - len(used))
        assert got == ordered, f"{text}, not ascending with -1 last"
        scores = gold_scores[batch, row, group].tolist()
        assert all(0 <= block < len(scores) for block in used), f"{text}, a block that does not exist"
        ranked = [sorted(scores[block] for block in ids if block != -1) for ids in (got, wanted)]
        assert len(ranked[0]) == len(ranked[1]), f"{text}, another number of blocks"
        for left, right in zip(*ranked, strict=True):
            tolerance = _TIE_ULPS * torch.finfo(torch.float32).eps * abs(right)
            same = left == right or abs(left - right) < tolerance
            assert same, f"{text}, whose scores {left!r} and {right!r} are no tie"
