"""What a long call allocates beside its results, counted on a device without memory; no kernel is started."""

import weakref
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trisparse import SparseConfig, backends, decode, ops, validate
from trisparse import triton as room
from trisparse.triton.launch import Launch

CONFIG = SparseConfig()
TOKENS, HEADS, GROUPS, DIM = 131072, 64, 4, 128
PLACE = (CONFIG, DIM**-0.5, None, 0)
MOST = 0.3e9
# tokens of a prompt that are read at once
CHUNK = 2048


class LiveBytes(TorchDispatchMode):
    """The bytes of all storages that are made inside and still held, and the most there ever were."""

    def __init__(self, *known):
        super().__init__()
        self.now = self.most = 0
        self.seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        results = function(*arguments, **(options or {}))
        for each in tree_leaves(results):
            if isinstance(each, torch.Tensor):
                self.add(each.untyped_storage())
        return results

    def add(self, storage):
        if storage in self.seen:
            return
        self.seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.drop, size)

    def drop(self, size):
        self.now -= size


def make(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def inputs():
    pairs = [make(1, n, GROUPS, DIM) for n in (CONFIG.num_compressed(TOKENS), TOKENS, TOKENS) for _ in "kv"]
    return make(1, TOKENS, HEADS, DIM), *pairs, make(1, TOKENS, HEADS, 3)


def bytes_of(tensors):
    return sum(tensor.nbytes for tensor in tensors)


def extra(function, *tensors, **options):
    """Bytes that a call holds at most, beyond its inputs and what it returns."""
    with LiveBytes(*tensors) as live:
        results = function(*tensors, **options)
        assert live.now >= bytes_of(results)
    return live.most - bytes_of(results)


def test_mode_counts_what_lives():
    given = make(1000)
    with LiveBytes(given) as live:
        kept = make(10, dtype=torch.float32)
        make(100, dtype=torch.float32)
        views = kept[2:], given[5:]
    assert (live.now, live.most) == (40, 440), views


@pytest.fixture(autouse=True)
def _no_kernels(monkeypatch):
    monkeypatch.setattr(Launch, "run", lambda _: None)


def test_forward_without_a_backward():
    """Guards against branches of all rows at once, 6 GiB here, where nobody will ask for them again."""
    assert extra(lambda *x: room.sparse_forward(*x, False, *PLACE), *inputs()) < MOST


def test_backward_from_the_ids_alone():
    """Guards against branches, or an fp32 d query, of all rows at once, 6 GiB here."""
    ids = make(1, TOKENS, GROUPS, CONFIG.num_selected, dtype=torch.int32)
    grad_out = make(1, TOKENS, HEADS, DIM)
    assert extra(lambda *x: room.sparse_recompute_backward(*x, *PLACE), grad_out, *inputs(), ids) < MOST


def test_backward():
    """Guards against an fp32 d query of all rows at once, 4 GiB here."""
    ids = make(1, TOKENS, GROUPS, CONFIG.num_selected, dtype=torch.int32)
    branches, lse = make(3, 1, TOKENS, HEADS, DIM), make(3, 1, TOKENS, HEADS, dtype=torch.float32)
    grad_out = make(1, TOKENS, HEADS, DIM)
    assert extra(lambda *x: room.sparse_backward(*x, *PLACE), grad_out, *inputs(), branches, lse, ids) < MOST


@pytest.fixture
def cached_calls(monkeypatch):
    """Operators run here what they run on a GPU, where the device would give them their shapes alone."""
    monkeypatch.setattr(backends, "choose", lambda *_: "triton")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    # both refuse tensors without data
    monkeypatch.setattr(validate, "tensor", lambda *_: None)
    monkeypatch.setattr(decode, "_check_shapes", lambda *_: None)
    called = []

    def run(name, *arguments):
        called.append(name)
        return ops._run(name, *arguments)

    for name in ("compressed_select_forward", "selected_forward", "window_forward", "sparse_forward"):
        monkeypatch.setattr(torch.ops.trisparse, name, partial(run, name))
    return called


def chunk_bytes(room_tokens, ring):
    """What reading the last CHUNK tokens of a room through the cache holds beside inputs and results."""
    slots = -(-(CONFIG.window - 1 + CHUNK) // 64) * 64 if ring else room_tokens
    lengths = CONFIG.num_compressed(room_tokens), room_tokens, slots
    pairs = [make(1, length, GROUPS, DIM) for length in lengths for _ in "kv"]
    starts = torch.tensor([room_tokens - CHUNK], dtype=torch.int32)

    def call(query, gates, *pairs):
        both = zip(pairs[::2], pairs[1::2], strict=True)
        return decode.sparse_decode(query, *both, gates, starts, CONFIG, window_ring=ring)

    return extra(call, make(1, CHUNK, HEADS, DIM), make(1, CHUNK, HEADS, 3), *pairs)


@pytest.mark.parametrize("ring", [False, True], ids=["positions", "ring"])
def test_last_chunk_of_a_prompt(ring, cached_calls):
    """Guards against memory that grows with the room: scores of all blocks, copies of the cache."""
    found = chunk_bytes(TOKENS, ring)
    assert cached_calls == ["compressed_select_forward", "selected_forward", "window_forward"]
    # three branches, their sum in fp32 and what is on its way there
    assert found < MOST
    assert found == chunk_bytes(TOKENS // 8, ring)
