"""Sizes and calls of attention layers, checked alike for all of them."""

from typing import Any

from trisparse import validate
from trisparse.nn.rope import Rope


def check_sizes(
    hidden_size: Any, num_heads: Any, num_kv_groups: Any, head_dim: Any, value_dim: Any, rope: Any
) -> None:
    """All sizes of a layer are ints of at least 1, its groups divide its heads, and `rope` fits a head.

    Raises:
        TypeError, ValueError: they are not; the message begins with the argument's name.
    """
    sizes = {
        "hidden_size": hidden_size,
        "num_heads": num_heads,
        "num_kv_groups": num_kv_groups,
        "head_dim": head_dim,
        "value_dim": value_dim,
    }
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"{name}: expected an int, got {type(size).__name__} {size!r}")
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    if num_heads % num_kv_groups:
        raise ValueError(f"num_kv_groups: expected a divisor of num_heads={num_heads}, got {num_kv_groups}")
    if rope is not None and not isinstance(rope, Rope):
        raise TypeError(f"rope: expected a Rope or None, got {type(rope).__name__}")
    if rope is not None and rope.dim > head_dim:
        raise ValueError(f"rope: expected at most head_dim={head_dim} channels, got {rope.dim}")


def check_call(
    hidden: Any, hidden_size: int, cu_seqlens: Any, cache: Any, padding: Any, packed: Any = None
) -> None:
    """`hidden` is [B, T, hidden_size], and packed documents come with neither cache nor padding.

    Raises:
        TypeError, ValueError: they do; the message begins with the argument's name.
    """
    validate.any_tensor("hidden", hidden)
    if not hidden.is_floating_point():
        raise TypeError(f"hidden: expected floating-point numbers, got {hidden.dtype}")
    if hidden.dim() != 3 or hidden.shape[2] != hidden_size:
        raise ValueError(f"hidden: expected [B, T, {hidden_size}], got {list(hidden.shape)}")
    if packed is not None and cu_seqlens is not None:
        raise ValueError("packed: expected no cu_seqlens beside it, for it holds them")
    bounds = cu_seqlens if packed is None else packed.cu_seqlens
    if bounds is not None and (cache is not None or padding is not None):
        raise ValueError("cu_seqlens: expected neither cache nor padding beside it")
    # before the bounds cut anything
    validate.packed(bounds, hidden, hidden.shape[1])
    if packed is not None and len(packed.positions) != hidden.shape[1]:
        raise ValueError(f"packed: expected {hidden.shape[1]} tokens, got {len(packed.positions)}")
