"""A decode call at real sizes: what it takes, and rows taken out of it."""

import torch

from trisparse import SparseConfig
from trisparse.bench.expected import first_in_window
from trisparse.decode import sparse_decode

from .device import BACKEND, DEVICE, pick

PAPER = SparseConfig()
ROOM = pick(32768, 300)
STARTS = pick([0, 31, 1000, 8191, -1, 32000], [0, 31, 200, -1])
# (H, G, D, E)
SHAPES = pick({"paper": (64, 4, 192, 128), "small groups": (16, 4, 64, 64)}, {"small groups": (8, 4, 16, 16)})


def draw(shape, new_tokens, batch, dtype, seed=0):
    """The tensors of a call whose window is a ring."""
    heads, groups, head_dim, value_dim = SHAPES[shape]
    generator = torch.Generator(device=DEVICE).manual_seed(seed)

    def normal(*sizes):
        return torch.randn(sizes, generator=generator, device=DEVICE, dtype=dtype)

    def pair(length):
        return normal(batch, length, groups, head_dim), normal(batch, length, groups, value_dim)

    query = normal(batch, new_tokens, heads, head_dim) * 3
    gates = normal(batch, new_tokens, heads, 3).sigmoid()
    return query, pair(PAPER.num_compressed(ROOM)), pair(ROOM), pair(576), gates


def starts_of(values):
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def decode(tensors, starts, backend=BACKEND):
    return sparse_decode(*tensors, starts, PAPER, window_ring=True, backend=backend)


def cast(tensors, dtype):
    return tuple(tuple(x.to(dtype) for x in t) if isinstance(t, tuple) else t.to(dtype) for t in tensors)


def rows_of(tensors, rows):
    return tuple(tuple(x[rows].clone() for x in t) if isinstance(t, tuple) else t[rows] for t in tensors)


def alone(tensors, start):
    """One row's query, gates, and pairs of exactly its own tokens, the window's in their order."""
    query, *pairs, gates = tensors
    stop = start + query.shape[1]
    slots = torch.arange(first_in_window(start, PAPER), stop, device=DEVICE) % 576
    places = (slice(PAPER.num_compressed(stop)), slice(stop), slots)
    return query, gates, *(tuple(x[:, at] for x in pair) for pair, at in zip(pairs, places, strict=True))


def flat(tensors):
    return [x for t in tensors for x in (t if isinstance(t, tuple) else (t,))]
