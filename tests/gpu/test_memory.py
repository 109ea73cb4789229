"""What a call allocates: nothing that stays, nothing that grows with the square of the length."""

import gc
from functools import partial

import pytest
import torch

from trisparse.bench.peak import peak_bytes

from .calls import draw, everything, forward, grad_like, make_case
from .device import DEVICE, needs_gpu, one_at_a_time, pick, require_memory


@needs_gpu
def test_three_hundred_calls_leave_nothing_behind():
    """Guards against reference cycles that keep saved tensors, and caches that grow with every call."""
    inputs = draw(make_case("leak", (16, 2), (128, 128), 1200), torch.bfloat16)
    grad_out = grad_like(inputs)
    for _ in range(3):
        everything(inputs, grad_out)
    gc.collect()
    gc.disable()
    try:
        before = torch.cuda.memory_allocated()
        for count in range(300):
            everything(inputs, grad_out)
            assert torch.cuda.memory_allocated() == before, f"after call {count}"
    finally:
        gc.enable()


def measured(tokens, direction):
    """Peak bytes of one call of 32/2 heads, 128/128, in bytes of its query."""
    case = make_case("peak", (32, 2), (128, 128), tokens)
    query_bytes = tokens * case.heads * case.head_dim * 2
    require_memory(20 * query_bytes)
    inputs = draw(case, torch.bfloat16)
    grad_out = grad_like(inputs)

    def run():
        if direction == "forward":
            forward(inputs)
        else:
            everything(inputs, grad_out)

    run()
    torch.cuda.empty_cache()
    return peak_bytes(run, torch.device(DEVICE)) / query_bytes


@needs_gpu
@one_at_a_time
@pytest.mark.parametrize(("direction", "bound"), [("forward", 6), ("backward", 14)])
def test_peak_grows_with_the_length_not_its_square(direction, bound):
    """Guards against a T x T or T x C x H tensor, which would take 64 query sizes at 64k and more.

    A forward holds the three branches, their sum and little beside; a backward all gradients and some fp32
    sums of that size.
    """
    short, long = (measured(tokens, direction) for tokens in (32768, 65536))
    assert long < bound
    assert long < 1.15 * short


def poisoned_empty(monkeypatch):
    """New tensors without values are full of NaN, or of a number that names nothing."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    return lambda: torch.use_deterministic_algorithms(before)


TOKENS = pick(1200, 100)
PLACES = {
    "dense": {"batch": 2},
    "packed": {"cu_seqlens": (0, 0, 31, 31, TOKENS - 1, TOKENS)},
    "chunk": {"query_start": TOKENS - 77},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", PLACES)
def test_fresh_memory_full_of_nan_changes_nothing(name, monkeypatch):
    """Guards against outputs and scratch that are read, or returned, where nobody wrote."""
    inputs = draw(make_case(name, (12, 2), (60, 100), TOKENS, **PLACES[name]), torch.bfloat16)
    grad_out = grad_like(inputs)
    wanted = everything(inputs, grad_out)
    undo = poisoned_empty(monkeypatch)
    try:
        assert torch.empty(8, device=inputs.query.device).isnan().all(), "the poison does not work"
        found = everything(inputs, grad_out)
    finally:
        undo()
    for got, expected in zip(found, wanted, strict=True):
        assert torch.equal(got, expected)


class Guarded:
    """Tensors that are made without values lie between words that nobody may write to."""

    WORDS = 1024
    # every data type holds it
    PATTERN = 77

    def __init__(self, monkeypatch):
        self.buffers = []
        new_empty, empty, empty_like = torch.Tensor.new_empty, torch.empty, torch.empty_like

        def guarded(make, shape, options):
            shape = tuple(shape[0]) if shape and not isinstance(shape[0], int) else shape
            count = torch.Size(shape).numel()
            buffer = make(count + 2 * self.WORDS, **options).fill_(self.PATTERN)
            self.buffers.append(buffer)
            return buffer[self.WORDS : self.WORDS + count].view(shape)

        def like(tensor, **options):
            if not tensor.is_contiguous():
                return empty_like(tensor, **options)
            return guarded(partial(new_empty, tensor), tensor.shape, options)

        monkeypatch.setattr(
            torch.Tensor,
            "new_empty",
            lambda x, *shape, **options: guarded(partial(new_empty, x), shape, options),
        )
        monkeypatch.setattr(torch, "empty", lambda *shape, **options: guarded(empty, shape, options))
        monkeypatch.setattr(torch, "empty_like", like)

    def check(self):
        for number, buffer in enumerate(self.buffers):
            around = torch.cat([buffer[: self.WORDS], buffer[-self.WORDS :]])
            assert (around == self.PATTERN).all(), f"tensor {number} of {list(buffer.shape)} {buffer.dtype}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", PLACES)
def test_words_around_every_tensor_of_ours_stay(name, dtype, monkeypatch):
    """Guards against stores outside of outputs and scratch, which no result shows."""
    inputs = draw(make_case(name, (12, 2), (60, 100), TOKENS, **PLACES[name]), dtype)
    grad_out = grad_like(inputs)
    wanted = everything(inputs, grad_out)
    with monkeypatch.context() as patch:
        guarded = Guarded(patch)
        found = everything(inputs, grad_out)
    assert len(guarded.buffers) >= pick(7, 0)
    guarded.check()
    for got, expected in zip(found, wanted, strict=True):
        assert torch.equal(got, expected)


def test_guards_see_a_stray_store(monkeypatch):
    """Guards against guards that nothing can break."""
    with monkeypatch.context() as patch:
        guarded = Guarded(patch)
        tensor = torch.empty(2, 3, device=DEVICE)
    guarded.check()
    torch.as_strided(tensor, (1,), (1,), tensor.storage_offset() + 6).fill_(0)
    with pytest.raises(AssertionError, match="tensor 0"):
        guarded.check()
