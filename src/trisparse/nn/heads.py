"""Sizes of heads, checked alike for every attention layer."""

from trisparse.nn.rope import Rope


def check_heads(num_heads: int, num_kv_groups: int, head_dim: int, rope: Rope | None) -> None:
    """Raise ValueError unless groups divide heads and rope fits a head."""
    if num_kv_groups < 1 or num_heads % num_kv_groups:
        raise ValueError(f"num_kv_groups: expected a divisor of num_heads={num_heads}, got {num_kv_groups}")
    if rope is not None and rope.dim > head_dim:
        raise ValueError(f"rope: expected at most head_dim={head_dim} channels, got {rope.dim}")
