"""NativeSparseAttention: the layer, from hidden states to hidden states."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trisparse import api, validate
from trisparse.config import SparseConfig
from trisparse.decode import sparse_decode
from trisparse.invariance import is_batch_invariant
from trisparse.nn.cache import STEP, SparseCache
from trisparse.nn.compressor import Compressor, CompressorKind
from trisparse.nn.gates import Gates
from trisparse.nn.heads import check_call, check_sizes
from trisparse.nn.packed import PackedPlaces, packed_places
from trisparse.nn.probe import Observation, current_record
from trisparse.nn.rope import Rope
from trisparse.nn.rows import check_padding, without_padding

_COMPRESSED, _SELECTED, _WINDOW = range(3)


def _positions_from(starts: Tensor, count: int) -> Tensor:
    """[R, count] of the tokens that begin at `starts` [R]."""
    return starts[:, None] + torch.arange(count, device=starts.device)


class NativeSparseAttention(nn.Module):
    """Multi-head attention by three sparse branches (eq. 5), a drop-in for causal self-attention.

    Args:
        hidden_size: channels of the input and output.
        num_heads: query heads (H).
        num_kv_groups: key/value groups (G); divides H.
        head_dim: channels of a query or key head (D).
        value_dim: channels of a value head (E); D if None.
        config: block sizes and counts.
        compressor: "mlp", "linear" or "mean".
        shared_kv: one K/V set for the three branches instead of the paper's three.
        rope: rotary embedding of queries and raw keys; None for none.
        compressed_rope: "block" rotates a compressed key, computed from keys before rope, at the position of
            its block's first token; "none" leaves it and the queries that meet it unrotated.
        layer: the layer's number, for `nn.probe`.
        recompute, backend: as in `sparse_attention`.

    Raises:
        TypeError, ValueError: sizes that do not fit each other; the message begins with the argument's name.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_groups: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        config: SparseConfig | None = None,
        compressor: CompressorKind = "mlp",
        shared_kv: bool = False,
        rope: Rope | None = None,
        compressed_rope: Literal["block", "none"] = "block",
        layer: int = 0,
        recompute: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.value_dim = head_dim if value_dim is None else value_dim
        check_sizes(hidden_size, num_heads, num_kv_groups, head_dim, self.value_dim, rope)
        if compressed_rope not in ("block", "none"):
            raise ValueError(f"compressed_rope: expected 'block' or 'none', got {compressed_rope!r}")
        self.hidden_size = hidden_size
        self.num_heads, self.num_kv_groups, self.head_dim = num_heads, num_kv_groups, head_dim
        self.config = SparseConfig() if config is None else config
        validate.sizes(self.config)
        self.shared_kv, self.rope, self.compressed_rope = shared_kv, rope, compressed_rope
        self.layer, self.recompute, self.backend = layer, recompute, backend
        num_sets = 1 if shared_kv else 3
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, num_sets * num_kv_groups * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, num_sets * num_kv_groups * self.value_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * self.value_dim, hidden_size, bias=False)
        self.gates = Gates(hidden_size, num_heads)
        self.compress_key = Compressor(compressor, head_dim, self.config)
        self.compress_value = Compressor(compressor, self.value_dim, self.config)

    def new_cache(self, capacity: int | None = None, max_rollback: int = 64) -> SparseCache:
        """An empty cache for this layer."""
        return SparseCache(self.config, shared=self.shared_kv, capacity=capacity, max_rollback=max_rollback)

    def forward(
        self,
        hidden: Tensor,
        *,
        cache: SparseCache | None = None,
        cu_seqlens: Tensor | None = None,
        padding: Sequence[int] | None = None,
        packed: PackedPlaces | None = None,
    ) -> Tensor:
        """Attend `hidden` [B, T, hidden_size] to itself and to what `cache` holds -> [B, T, hidden_size].

        Args:
            cache: decode state, extended in place by the T new tokens; they may be any number. The outputs
                then have no gradient, because none could reach what the cache holds. Keep such calls out of
                torch.compile, as the language model does: lengths are counted on the host.
            cu_seqlens: int32 bounds of documents packed into B = 1; not together with `cache` or `padding`.
            padding: left-padding tokens of each row; they are skipped, and their outputs are 0.
            packed: instead of `cu_seqlens`, what `packed_places` makes of them, once for several layers.

        Raises:
            TypeError, ValueError: arguments of another type or shape; a cache of another layer shape, dtype,
                device or batch size, or without room.
        """
        check_call(hidden, self.hidden_size, cu_seqlens, cache, padding, packed)
        if cache is not None:
            return self._forward_cached(hidden, cache, padding)
        tensors = self._project(hidden)
        if padding is None:
            out = self._attend_all(tensors, self._places(hidden, cu_seqlens, packed))
        else:
            counts = check_padding(padding, *hidden.shape[:2])
            out = without_padding(lambda rows, _: self._attend_all(rows), tensors, counts)
        return self.o_proj(out.flatten(2))

    def _places(
        self, hidden: Tensor, cu_seqlens: Tensor | None, packed: PackedPlaces | None
    ) -> PackedPlaces | None:
        """Those that are given, or those of the bounds; None where one sequence fills a row."""
        if packed is not None and packed.config != self.config:
            raise ValueError(f"packed: expected places for {self.config}, got those for {packed.config}")
        if cu_seqlens is not None:
            return packed_places(cu_seqlens, hidden.shape[1], self.config)
        return packed

    @torch.no_grad()
    def _forward_cached(self, hidden: Tensor, cache: SparseCache, padding: Sequence[int] | None) -> Tensor:
        """`forward` after what the cache holds, which then holds the new tokens too."""
        skips = check_padding(padding, *hidden.shape[:2])
        counts = [hidden.shape[1] - skip for skip in skips]
        tensors = self._project(hidden)
        self._reserve(cache, tensors, counts)
        late: list[tuple[slice, dict[str, Tensor]]] = []
        out = without_padding(partial(self._attend_cached, cache, late), tensors, skips)
        for rows, near in late:
            cache.write(rows, near)
        cache.commit(counts)
        return self.o_proj(out.flatten(2))

    def _reserve(self, cache: SparseCache, tensors: list[Tensor], counts: list[int]) -> None:
        """Room for counts[b] more tokens in each row, or an error that leaves the cache as it was."""
        if not isinstance(cache, SparseCache):
            raise TypeError(f"cache: expected a SparseCache, got {type(cache).__name__}")
        if cache.config != self.config or cache.shared != self.shared_kv:
            raise ValueError(
                f"cache: expected one for {self.config}, shared={self.shared_kv}; "
                f"got {cache.config}, shared={cache.shared}"
            )
        _, keys, values, _ = tensors
        # all branches have the same kind of token
        likes = {"key": self._set(keys, _SELECTED), "value": self._set(values, _SELECTED)}
        names = ("", "compressed_", "tail_") if self.shared_kv else ("", "compressed_", "tail_", "window_")
        cache.reserve({name + part: like for name in names for part, like in likes.items()}, counts)

    def _project(self, hidden: Tensor) -> list[Tensor]:
        """query [B, T, H, D], then all keys and all values [B, T, sets * G, *], then gates [B, T, H, 3]."""
        query = self.q_proj(hidden).unflatten(-1, (self.num_heads, self.head_dim))
        keys = self.k_proj(hidden).unflatten(-1, (-1, self.head_dim))
        values = self.v_proj(hidden).unflatten(-1, (-1, self.value_dim))
        return [query, keys, values, self.gates(hidden)]

    def _set(self, all_sets: Tensor, branch: int) -> Tensor:
        """The K or V of one branch."""
        first = 0 if self.shared_kv else branch * self.num_kv_groups
        return all_sets[:, :, first : first + self.num_kv_groups]

    def _rotate(self, heads: Tensor, positions: Tensor) -> Tensor:
        return heads if self.rope is None else self.rope.rotate(heads, positions)

    def _rotate_blocks(self, keys: Tensor, blocks: Tensor) -> Tensor:
        """Compressed keys at the positions of the first tokens of `blocks`, their numbers."""
        if self.compressed_rope == "none":
            return keys
        return self._rotate(keys, blocks * self.config.compress_stride)

    def _compress(self, keys: Tensor, values: Tensor, packed: PackedPlaces | None) -> tuple[Tensor, Tensor]:
        """Compressed keys and values of whole documents, packed document after document."""
        key, value = self.compress_key(keys, packed), self.compress_value(values, packed)
        blocks = torch.arange(key.shape[1], device=key.device) if packed is None else packed.block_numbers
        return self._rotate_blocks(key, blocks), value

    def _attend_all(self, tensors: list[Tensor], packed: PackedPlaces | None = None) -> Tensor:
        """Whole sequences without a cache: [B, T, H, E]."""
        query, keys, values, gates = tensors
        cu_seqlens = None if packed is None else packed.cu_seqlens
        positions = torch.arange(query.shape[1], device=query.device) if packed is None else packed.positions
        rotated = self._rotate(query, positions)
        compressed = self._compress(self._set(keys, _COMPRESSED), self._set(values, _COMPRESSED), packed)
        selected_key = self._rotate(self._set(keys, _SELECTED), positions)
        window_key = selected_key
        if not self.shared_kv:
            window_key = self._rotate(self._set(keys, _WINDOW), positions)
        selected = selected_key, self._set(values, _SELECTED)
        window = window_key, self._set(values, _WINDOW)
        if self.compressed_rope == "none" or current_record() is not None:
            raw = query if self.compressed_rope == "none" else rotated
            if is_batch_invariant() and cu_seqlens is None and not torch.is_grad_enabled():
                return self._as_decoded(raw, rotated, compressed, selected, window, gates)
            return self._branches(raw, rotated, compressed, selected, window, gates, cu_seqlens)
        return api.sparse_attention(
            rotated,
            compressed,
            selected,
            window,
            gates,
            self.config,
            cu_seqlens=cu_seqlens,
            recompute=self.recompute,
            backend=self.backend,
        )

    def _branches(
        self,
        query_cmp: Tensor,
        query: Tensor,
        compressed: tuple[Tensor, Tensor],
        selected: tuple[Tensor, Tensor],
        window: tuple[Tensor, Tensor],
        gates: Tensor,
        cu_seqlens: Tensor | None,
    ) -> Tensor:
        """`sparse_attention` from its parts, where the ids are wanted or the compressed query is another."""
        config = self.config
        place: dict[str, Any] = {"cu_seqlens": cu_seqlens, "backend": self.backend}
        out_cmp, _, ids = api.attend_and_select(query_cmp, *compressed, config, **place)
        self._record(gates, ids)
        out_slc = api.selected_attention(query, *selected, ids, config, **place)
        out_win = api.window_attention(query, *window, config, **place)
        return api.gated_sum(gates, (out_cmp, out_slc, out_win))

    def _as_decoded(
        self,
        query_cmp: Tensor,
        query: Tensor,
        compressed: tuple[Tensor, Tensor],
        selected: tuple[Tensor, Tensor],
        window: tuple[Tensor, Tensor],
        gates: Tensor,
    ) -> Tensor:
        """`_branches` as a cached call adds them: before they are rounded."""
        out, ids = sparse_decode(
            query,
            compressed,
            selected,
            window,
            gates,
            torch.zeros(len(query), dtype=torch.int32, device=query.device),
            self.config,
            query_cmp=query_cmp,
            backend=self.backend,
        )
        self._record(gates, ids)
        return out

    def _record(self, gates: Tensor, ids: Tensor) -> None:
        record = current_record()
        if record is not None:
            size = self.config.select_block
            record.append(Observation(layer=self.layer, gates=gates.detach(), ids=ids, select_block=size))

    def _attend_cached(
        self,
        cache: SparseCache,
        late: list[tuple[slice, dict[str, Tensor]]],
        tensors: list[Tensor],
        rows: slice,
    ) -> Tensor:
        """Tokens [R, n, ...] after what `rows` of the cache hold, which has room for them: [R, n, H, E].

        What goes around the rings is appended to `late`: it may be written when no row can fail any more.
        """
        starts = torch.tensor(cache.lengths[rows], dtype=torch.int32, device=tensors[0].device)
        raw, near = self._tokens(tensors, _positions_from(starts, tensors[0].shape[1]))
        self._compress_new(cache, rows, near)
        cache.write(rows, raw)
        if tensors[0].shape[1] <= STEP:
            cache.write(rows, near)
            window = cache.window(rows)
        else:
            window = cache.longer_window(rows, near)
            late.append((rows, near))
        return self._decode(cache, rows, tensors, starts, window)

    def step(self, hidden: Tensor, cache: SparseCache, starts: Tensor) -> Tensor:
        """`forward` of each row's newest token, at `starts` int32 [B] on the device: [B, 1, hidden_size].

        Nothing on the host depends on `starts`, so that a CUDA graph of it serves all steps. The cache has
        room, and is told by the caller (`expect` before, `commit` after).
        """
        tensors = self._project(hidden)
        positions = _positions_from(starts, 1)
        raw, near = self._tokens(tensors, positions)
        for name, tokens in (raw | near).items():
            cache.buffers[name].put(positions, tokens)
        self._compress_last(cache, starts)
        everything = slice(None)
        out = self._decode(cache, everything, tensors, starts, cache.window(everything))
        return self.o_proj(out.flatten(2))

    def _tokens(
        self, tensors: list[Tensor], positions: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What a cache keeps of tokens at `positions` [R, n], for good and in its rings, by buffer."""
        _, keys, values, _ = tensors
        key, value = self._set(keys, _SELECTED), self._set(values, _SELECTED)
        near = {"tail_key": self._set(keys, _COMPRESSED), "tail_value": self._set(values, _COMPRESSED)}
        if not self.shared_kv:
            near["window_key"] = self._rotate(self._set(keys, _WINDOW), positions)
            near["window_value"] = self._set(values, _WINDOW)
        return {"key": self._rotate(key, positions), "value": value}, near

    def _decode(
        self,
        cache: SparseCache,
        rows: slice,
        tensors: list[Tensor],
        starts: Tensor,
        window: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Attention [R, n, H, E] of tokens that the cache holds already."""
        query, _, _, gates = tensors
        out, ids = sparse_decode(
            self._rotate(query, _positions_from(starts, query.shape[1])),
            cache.pair(rows, "compressed_"),
            cache.pair(rows),
            window,
            gates,
            starts,
            self.config,
            window_ring=not self.shared_kv,
            query_cmp=query if self.compressed_rope == "none" else None,
            backend=self.backend,
        )
        self._record(gates, ids)
        return out

    def _compress_last(self, cache: SparseCache, starts: Tensor) -> None:
        """Compress the block that each row's newest token completes, if it completes one."""
        config = self.config
        past = starts.long() + 1 - config.compress_block
        block = (past // config.compress_stride).clamp(min=0)[:, None]
        completes = ((past >= 0) & (past % config.compress_stride == 0))[:, None, None, None]
        first = block * config.compress_stride
        positions = first + torch.arange(config.compress_block, device=starts.device)
        for part, compress in (("key", self.compress_key), ("value", self.compress_value)):
            new = compress(cache.buffers[f"tail_{part}"].at(positions))
            if part == "key":
                new = self._rotate_blocks(new, block)
            buffer = cache.buffers[f"compressed_{part}"]
            buffer.put(block, torch.where(completes, new, buffer.at(block)))

    def _compress_new(self, cache: SparseCache, rows: slice, new: dict[str, Tensor]) -> None:
        """Compress the blocks that the newest tokens complete, for all rows of one length at once."""
        count = new["tail_key"].shape[1]
        for start, members in cache.rows_by_length(rows):
            first, stop = self.config.num_compressed(start), self.config.num_compressed(start + count)
            if first == stop:
                continue
            chosen = [row - rows.start for row in members]
            for part, compress in (("key", self.compress_key), ("value", self.compress_value)):
                begin = first * self.config.compress_stride
                past = cache.buffers[f"tail_{part}"].read(members, [begin] * len(members), start - begin)
                blocks = compress(torch.cat([past, new[f"tail_{part}"][chosen]], dim=1))
                if part == "key":
                    numbers = torch.arange(first, stop, device=blocks.device)
                    blocks = self._rotate_blocks(blocks, numbers)
                cache.buffers[f"compressed_{part}"].write(members, [first] * len(members), blocks)
