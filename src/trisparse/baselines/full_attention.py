"""Full causal attention, plain or with a sigmoid output gate: the baseline that lacks only sparsity."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from trisparse import api
from trisparse.config import SparseConfig
from trisparse.invariance import is_batch_invariant
from trisparse.nn.cache import DenseCache
from trisparse.nn.gates import Gates
from trisparse.nn.heads import check_call, check_sizes
from trisparse.nn.packed import PackedPlaces, document_lengths
from trisparse.nn.rope import Rope
from trisparse.nn.rows import check_padding, without_padding


def causal_attention(query: Tensor, key: Tensor, value: Tensor, query_start: int = 0) -> Tensor:
    """Full attention of query rows at `query_start ..` by PyTorch's own kernel.

    In the batch-invariant mode by ours, as a window over everything.

    `query` [B, Tq, H, D], `key` [B, T, G, D], `value` [B, T, G, E] -> [B, Tq, H, E].
    """
    if is_batch_invariant():
        config = SparseConfig(window=max(1, key.shape[1]))
        return api.window_attention(query, key, value, config, query_start=query_start)
    value_dim = value.shape[3]
    # the fused kernels want D = E; zero channels change nothing but the speed
    value = pad(value, (0, max(0, key.shape[3] - value_dim)))
    num_rows, num_tokens = query.shape[1], key.shape[1]
    if num_rows == 1:
        return _attend_one(query, key, value)[..., :value_dim]
    mask = None
    if 1 < num_rows < num_tokens:
        positions = torch.arange(query_start, query_start + num_rows, device=query.device)
        mask = torch.arange(num_tokens, device=query.device) <= positions[:, None]
    out = scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        # and not "as many rows as tokens", which is no bool where torch.compile keeps lengths open
        is_causal=mask is None,
        enable_gqa=True,
    )
    return out.transpose(1, 2)[..., :value_dim]


def _attend_one(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
    """One query token: [B, 1, H, E]. `visible`: bool [B, T], by default all keys."""
    # a group's heads as rows: each key is read once for all of them, several times as fast on a CPU
    grouped = query.unflatten(2, (key.shape[2], -1)).squeeze(1)
    mask = None if visible is None else visible[:, None, None]
    out = scaled_dot_product_attention(grouped, key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask)
    return out.flatten(1, 2)[:, None]


def _row_by_row(query: Tensor, key: Tensor, value: Tensor, starts: Sequence[int]) -> Tensor:
    """`causal_attention` of rows [B, n, H, D] that start at different positions."""
    parts = []
    for row, start in enumerate(starts):
        place, stop = slice(row, row + 1), start + query.shape[1]
        parts.append(causal_attention(query[place], key[place, :stop], value[place, :stop], start))
    return torch.cat(parts)


class FullAttention(nn.Module):
    """Causal softmax attention over everything, with the interface of NativeSparseAttention.

    Args:
        gated: multiply each head's output by a sigmoid gate of the token, as NSA's branches are.
        The others are those of NativeSparseAttention.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_groups: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        rope: Rope | None = None,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.value_dim = head_dim if value_dim is None else value_dim
        check_sizes(hidden_size, num_heads, num_kv_groups, head_dim, self.value_dim, rope)
        self.hidden_size = hidden_size
        self.num_heads, self.num_kv_groups, self.head_dim = num_heads, num_kv_groups, head_dim
        self.rope = rope
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, num_kv_groups * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, num_kv_groups * self.value_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * self.value_dim, hidden_size, bias=False)
        self.gates = Gates(hidden_size, num_heads, num_branches=1) if gated else None

    def new_cache(self, capacity: int | None = None) -> DenseCache:
        """An empty cache for this layer."""
        return DenseCache(capacity)

    def forward(
        self,
        hidden: Tensor,
        *,
        cache: DenseCache | None = None,
        cu_seqlens: Tensor | None = None,
        padding: Sequence[int] | None = None,
        packed: PackedPlaces | None = None,
    ) -> Tensor:
        """As NativeSparseAttention.forward: [B, T, hidden_size] -> [B, T, hidden_size]."""
        check_call(hidden, self.hidden_size, cu_seqlens, cache, padding, packed)
        if cache is not None:
            return self._forward_cached(hidden, cache, padding)
        tensors = self._project(hidden)
        lengths = None if packed is None else packed.lengths
        if cu_seqlens is not None:
            lengths = document_lengths(cu_seqlens, hidden.shape[1])
        if lengths is not None:
            # the gradient of a split is one concatenation, that of slices as many whole sequences
            documents = zip(*(x.split(lengths, dim=1) for x in tensors), strict=True)
            out = torch.cat([self._attend(list(document)) for document in documents], dim=1)
        else:
            out = without_padding(self._attend, tensors, check_padding(padding, *hidden.shape[:2]))
        return self._finish(out, hidden)

    @torch.no_grad()
    def _forward_cached(self, hidden: Tensor, cache: DenseCache, padding: Sequence[int] | None) -> Tensor:
        if not isinstance(cache, DenseCache):
            raise TypeError(f"cache: expected a DenseCache, got {type(cache).__name__}")
        counts = check_padding(padding, *hidden.shape[:2])
        new = [hidden.shape[1] - skip for skip in counts]
        tensors = self._project(hidden)
        cache.reserve(dict(zip(("key", "value"), tensors[1:], strict=True)), new)
        out = without_padding(partial(self._attend, cache=cache), tensors, counts)
        cache.commit(new)
        return self._finish(out, hidden)

    def step(self, hidden: Tensor, cache: DenseCache, starts: Tensor) -> Tensor:
        """As NativeSparseAttention.step; what lies behind a row's tokens must be finite."""
        query, key, value = self._project(hidden)
        positions = starts[:, None].long()
        if self.rope is not None:
            query, key = self.rope.rotate(query, positions), self.rope.rotate(key, positions)
        for name, tokens in (("key", key), ("value", value)):
            cache.buffers[name].put(positions, tokens)
        key, value = cache.pair(slice(None))
        if is_batch_invariant():
            return self._finish(_row_by_row(query, key, value, starts.tolist()), hidden)
        visible = torch.arange(key.shape[1], device=key.device) <= positions
        wide = pad(value, (0, max(0, self.head_dim - self.value_dim)))
        out = _attend_one(query, key, wide, visible)[..., : self.value_dim]
        return self._finish(out, hidden)

    def _project(self, hidden: Tensor) -> list[Tensor]:
        """query [B, T, H, D], key [B, T, G, D], value [B, T, G, E]."""
        query = self.q_proj(hidden).unflatten(-1, (self.num_heads, self.head_dim))
        key = self.k_proj(hidden).unflatten(-1, (self.num_kv_groups, self.head_dim))
        value = self.v_proj(hidden).unflatten(-1, (self.num_kv_groups, self.value_dim))
        return [query, key, value]

    def _finish(self, out: Tensor, hidden: Tensor) -> Tensor:
        if self.gates is not None:
            out = out * self.gates(hidden)
        return self.o_proj(out.flatten(2))

    def _attend(
        self, tensors: list[Tensor], rows: slice = slice(None), cache: DenseCache | None = None
    ) -> Tensor:
        """Sequences [R, n, ...] after what `rows` of the cache hold: [R, n, H, E]."""
        query, key, value = tensors
        starts = [0] * len(query) if cache is None else cache.lengths[rows]
        if self.rope is not None:
            positions = torch.tensor(starts, device=query.device)[:, None]
            positions = positions + torch.arange(query.shape[1], device=query.device)
            query, key = self.rope.rotate(query, positions), self.rope.rotate(key, positions)
        if cache is None:
            return causal_attention(query, key, value)
        cache.write(rows, {"key": key, "value": value})
        if not starts:
            return query.new_empty(*query.shape[:3], value.shape[3])
        key, value = cache.pair(rows)
        if len(set(starts)) == 1:
            stop = starts[0] + query.shape[1]
            return causal_attention(query, key[:, :stop], value[:, :stop], starts[0])
        return _row_by_row(query, key, value, starts)
