"""Every check that does not depend on the backend, once; each error begins with the argument's name."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from trisparse.config import MAX_SLOTS, SparseConfig

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def any_tensor(name: str, value: Any) -> None:
    """`value` is a tensor, whatever is in it."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")


def integer(name: str, number: Any) -> int:
    """The value of `number`, an int or an integer tensor of one element."""
    value = number.item() if isinstance(number, Tensor) and number.numel() == 1 else number
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__} {value!r}")
    return value


def integers(name: str, numbers: Any) -> list[int]:
    """`numbers` as a list, where they are ints in a sequence or in an integer tensor [N]."""
    values = numbers.tolist() if isinstance(numbers, Tensor) else numbers
    if not isinstance(values, Iterable):
        raise TypeError(f"{name}: expected ints, got {type(numbers).__name__} {numbers!r}")
    values = list(values)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected ints, got {type(value).__name__} {value!r}")
    return values


def tensor(name: str, value: Any, rank: int) -> None:
    """`value` is a dense tensor of `rank` dimensions that lives somewhere."""
    any_tensor(name, value)
    if value.is_nested or value.layout != torch.strided or value.is_quantized:
        raise NotImplementedError(f"{name}: expected a dense tensor, got layout {value.layout}")
    if value.device.type == "meta":
        raise NotImplementedError(f"{name}: expected a tensor with data, got one on the meta device")
    if value.dim() != rank:
        raise ValueError(f"{name}: expected {rank} dimensions, got shape {list(value.shape)}")


def floating(name: str, value: Any, rank: int) -> None:
    """`value` is a tensor of a dtype that the backends compute in."""
    tensor(name, value, rank)
    if value.dtype in _DTYPES:
        return
    wanted = "float64, float32, bfloat16 or float16"
    if value.dtype.is_floating_point or value.dtype.is_complex:
        raise NotImplementedError(f"{name}: expected {wanted}, got {value.dtype}")
    raise TypeError(f"{name}: expected {wanted}, got {value.dtype}")


def _shape(name: str, value: Tensor, wanted: tuple[tuple[str, int], ...], why: str = "") -> None:
    if tuple(value.shape) != tuple(size for _, size in wanted):
        text = ", ".join(f"{letter}={size}" for letter, size in wanted)
        raise ValueError(f"{name}: expected [{text}], got {list(value.shape)}{why}")


def _same_place(name: str, value: Tensor, query: Tensor) -> None:
    if value.device != query.device:
        raise ValueError(f"{name}: expected query's device {query.device}, got {value.device}")


def query_rows(query: Any) -> None:
    """`query` is [B, T, H, D] with at least one head and one channel."""
    floating("query", query, 4)
    if query.shape[2] == 0 or query.shape[3] == 0:
        raise ValueError(f"query: expected [B, T, H, D] with H, D >= 1, got {list(query.shape)}")


def key_value(key_name: str, key: Any, value_name: str, value: Any, query: Tensor) -> None:
    """`key` is [B, N, G, D] and `value` [B, N, G, E], matching `query` in all but length."""
    for name, side in ((key_name, key), (value_name, value)):
        floating(name, side, 4)
        _same_place(name, side, query)
        if side.dtype != query.dtype:
            raise TypeError(f"{name}: expected query's dtype {query.dtype}, got {side.dtype}")
    groups = key.shape[2]
    _shape(
        key_name,
        key,
        (("B", query.shape[0]), ("T", key.shape[1]), ("G", groups), ("D", query.shape[3])),
        "; batch and head dim are query's",
    )
    if groups == 0 or query.shape[2] % groups != 0:
        raise ValueError(
            f"{key_name}: expected a number of groups that divides H={query.shape[2]}, got G={groups}"
        )
    _shape(
        value_name,
        value,
        (("B", query.shape[0]), ("T", key.shape[1]), ("G", groups), ("E", value.shape[3])),
        f"; batch, length and groups are {key_name}'s",
    )
    if value.shape[3] == 0:
        raise ValueError(f"{value_name}: expected E >= 1, got {list(value.shape)}")


def same_groups(name: str, value: Tensor, first: Tensor) -> None:
    """`value` has the groups and channels of the compressed branch's tensor `first`."""
    if value.shape[2:] != first.shape[2:]:
        raise ValueError(
            f"{name}: expected groups and channels {list(first.shape[2:])} as in the compressed branch, "
            f"got {list(value.shape[2:])}"
        )


def same_length(name: str, value: Tensor, num_tokens: int) -> None:
    """`value` [B, T, ...] has as many tokens as the selected branch's keys."""
    if value.shape[1] != num_tokens:
        raise ValueError(f"{name}: expected T={num_tokens} tokens as in key_slc, got {value.shape[1]}")


def pair(names: str, value: Any) -> None:
    """`value` is a (key, value) pair."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"{names}: expected a pair of tensors, got {type(value).__name__}")


def branches(query: Tensor, compressed: Any, selected: Any, window: Any) -> None:
    """Each branch is a (key, value) pair that fits `query`, and all have the same groups and channels."""
    for branch, value in (("cmp", compressed), ("slc", selected), ("win", window)):
        pair(f"key_{branch}, value_{branch}", value)
        key_value(f"key_{branch}", value[0], f"value_{branch}", value[1], query)
    for branch, (key_raw, value_raw) in (("slc", selected), ("win", window)):
        same_groups(f"key_{branch}", key_raw, compressed[0])
        same_groups(f"value_{branch}", value_raw, compressed[1])


def block_ids(ids: Any, query: Tensor, groups: int) -> None:
    """`ids` is [B, T, G, S] of int32 or int64. Its values need no check: each has a meaning (spec 5)."""
    tensor("ids", ids, 4)
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"ids: expected int32 or int64, got {ids.dtype}")
    _same_place("ids", ids, query)
    _shape(
        "ids",
        ids,
        (("B", query.shape[0]), ("T", query.shape[1]), ("G", groups), ("S", ids.shape[3])),
        "; one selection per KV group, not per query head",
    )
    if ids.shape[3] > MAX_SLOTS:
        raise ValueError(f"ids: expected at most S={MAX_SLOTS} slots, got {ids.shape[3]}")


def branch_gates(gates: Any, query: Tensor) -> None:
    """`gates` is [B, T, H, 3], floating, possibly wider than `query`."""
    floating("gates", gates, 4)
    _same_place("gates", gates, query)
    batch, tokens, heads, _ = query.shape
    _shape("gates", gates, (("B", batch), ("T", tokens), ("H", heads), ("branches", 3)))


def narrow_gates(gates: Tensor, query: Tensor) -> Tensor:
    """`gates`, or beside a narrower query in fp32, for most kernels know no fp64."""
    return gates.float() if gates.dtype == torch.float64 and query.dtype != torch.float64 else gates


def sizes(config: Any) -> None:
    """`config` is a SparseConfig, which has checked itself."""
    if not isinstance(config, SparseConfig):
        raise TypeError(f"config: expected a SparseConfig, got {type(config).__name__}")


def unicode_text(name: str, text: str) -> None:
    """`text` is Unicode: Python hands over bytes that are no UTF-8 as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: expected UTF-8, got something else at character {error.start}") from None


def softmax_scale(scale: Any, head_dim: int) -> float:
    """The scale to use: `scale`, or D ** -0.5 for None."""
    if scale is None:
        return float(head_dim) ** -0.5
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"scale: expected a float or None, got {type(scale).__name__}")
    if not math.isfinite(scale) or scale <= 0:
        raise ValueError(f"scale: expected a finite number above 0, got {scale}")
    return float(scale)


def row_range(query_start: Any, num_rows: int, num_tokens: int | None) -> None:
    """The query rows lie at `query_start ..`, none past the last of `num_tokens` tokens (None: unknown)."""
    if isinstance(query_start, bool) or not isinstance(query_start, int | torch.SymInt):
        raise TypeError(f"query_start: expected an int, got {type(query_start).__name__}")
    if query_start < 0:
        raise ValueError(f"query_start: expected at least 0, got {query_start}")
    if num_tokens is not None and query_start + num_rows > num_tokens:
        raise ValueError(
            f"query_start: expected query_start + {num_rows} rows to be at most {num_tokens} tokens, "
            f"got {query_start}"
        )


def query_like(name: str, value: Any, query: Tensor) -> None:
    """`value` is another query of the same shape, dtype and device."""
    floating(name, value, 4)
    _same_place(name, value, query)
    if value.dtype != query.dtype:
        raise TypeError(f"{name}: expected query's dtype {query.dtype}, got {value.dtype}")
    _shape(name, value, tuple(zip("BTHD", query.shape, strict=True)))


def ring(name: str, value: Tensor, needed: int) -> None:
    """`value` [B, R, G, *] is a ring of at least `needed` slots, in whole runs of 64."""
    if value.shape[1] < needed or value.shape[1] % 64:
        raise ValueError(
            f"{name}: expected a ring of a multiple of 64 and at least window - 1 + n = {needed} slots, "
            f"got {value.shape[1]}"
        )


def start_per_row(starts: Any, query: Tensor) -> None:
    """`starts` is int32 [B] beside `query` [B, n, H, D]."""
    tensor("starts", starts, 1)
    _same_place("starts", starts, query)
    if starts.dtype != torch.int32:
        raise TypeError(f"starts: expected int32, got {starts.dtype}")
    _shape("starts", starts, (("B", query.shape[0]),))


def row_starts(
    starts: Sequence[int], query: Tensor, room: int, room_compressed: int, config: SparseConfig
) -> None:
    """Every row's tokens fit the room of its keys; `starts` are the values."""
    if not starts:
        return
    latest = max(starts)
    if latest < 0:
        # none takes part
        return
    longest = latest + query.shape[1]
    if longest > room:
        raise ValueError(f"starts: expected every row to end within key_slc's {room} tokens, got {longest}")
    if config.num_compressed(longest) > room_compressed:
        raise ValueError(
            f"key_cmp: expected room for {config.num_compressed(longest)} blocks of {longest} tokens, "
            f"got {room_compressed}"
        )


def packed(cu_seqlens: Any, query: Tensor, num_tokens: int | None) -> list[int] | None:
    """`cu_seqlens` is int32 [N + 1] on B = 1, from 0, never falling, up to the packed length.

    Returns its values when they can be read for free (on a CPU, outside of tracing), else None: then kernels
    stay in bounds whatever the values are.
    """
    if cu_seqlens is None:
        return None
    tensor("cu_seqlens", cu_seqlens, 1)
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.device != query.device:
        raise ValueError(
            f"cu_seqlens: expected int32 on {query.device}, got {cu_seqlens.dtype} on {cu_seqlens.device}"
        )
    if cu_seqlens.shape[0] < 2:
        raise ValueError(f"cu_seqlens: expected N + 1 >= 2 bounds, got {cu_seqlens.shape[0]}")
    if query.shape[0] != 1:
        raise ValueError(f"cu_seqlens: expected a packed batch of B=1, got B={query.shape[0]}")
    if cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    bounds = cu_seqlens.tolist()
    check_bounds(bounds, num_tokens)
    return bounds


def check_bounds(bounds: list[int], num_tokens: int | None) -> None:
    """Values of `cu_seqlens`: from 0, never falling, up to the packed length where that is known."""
    if bounds[0] != 0:
        raise ValueError(f"cu_seqlens: expected the first bound to be 0, got {bounds[0]}")
    if any(after < before for before, after in zip(bounds, bounds[1:], strict=False)):
        raise ValueError(f"cu_seqlens: expected bounds that never fall, got {bounds}")
    if num_tokens is not None and bounds[-1] != num_tokens:
        raise ValueError(
            f"cu_seqlens: expected the last bound to be the {num_tokens} packed tokens, got {bounds[-1]}"
        )


def compressed_length(
    key: Tensor,
    config: SparseConfig,
    cu_seqlens: Tensor | None,
    bounds: list[int] | None,
    num_tokens: int | None,
    last_row: int = 0,
) -> None:
    """`key_cmp` has exactly the blocks its tokens imply; if they are unknown, those before `last_row`."""
    rows = key.shape[1]
    if cu_seqlens is not None:
        if bounds is None:
            return
        wanted = sum(config.num_compressed(b - a) for a, b in zip(bounds, bounds[1:], strict=False))
        if rows != wanted:
            raise ValueError(
                f"key_cmp: expected C={wanted} blocks for the documents in cu_seqlens, got {rows}"
            )
    elif num_tokens is not None:
        wanted = config.num_compressed(num_tokens)
        if rows != wanted:
            raise ValueError(f"key_cmp: expected C={wanted} blocks for {num_tokens} tokens, got {rows}")
    else:
        wanted = config.num_compressed(last_row)
        if rows < wanted:
            raise ValueError(
                f"key_cmp: expected at least C={wanted} blocks for rows up to {last_row}, got {rows}"
            )
