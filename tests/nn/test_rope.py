"""Rotary positions, plain and stretched by YaRN."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from trisparse.nn.rope import Rope, Yarn


def heads_of(tokens: int, dim: int) -> Tensor:
    return torch.randn(2, tokens, 3, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("theta", [10000.0, 500.0])
@pytest.mark.parametrize("dim", [2, 8, 10])
def test_equals_multiplication_by_complex_units(dim: int, theta: float) -> None:
    """Guards pairs, direction and frequencies of the rotation."""
    heads, positions = heads_of(6, dim), torch.tensor([0, 1, 2, 50, 51, 300])
    numbers = torch.complex(heads[..., : dim // 2], heads[..., dim // 2 :])
    frequencies = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = positions[:, None].double() * frequencies
    turned = numbers * torch.polar(torch.ones_like(angles), angles)[None, :, None]
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    # angles are fp32: 300 radians are known to 3e-5
    torch.testing.assert_close(
        Rope(dim=dim, theta=theta).rotate(heads, positions), expected, rtol=0, atol=1e-4
    )


def test_products_depend_on_the_distance_alone() -> None:
    """Guards the property that makes it a relative position: shifting both sides changes nothing."""
    rope = Rope(dim=8)
    query, key = heads_of(5, 8), heads_of(5, 8).flip(0)

    def products(shift: int) -> Tensor:
        positions = torch.arange(5) + shift
        return torch.einsum("bqhd,bkhd->bhqk", rope.rotate(query, positions), rope.rotate(key, positions))

    torch.testing.assert_close(products(0), products(40), rtol=0, atol=1e-4)
    moved = torch.einsum(
        "bqhd,bkhd->bhqk", rope.rotate(query, torch.arange(5) + 3), rope.rotate(key, torch.arange(5))
    )
    assert (moved - products(0)).abs().max() > 0.1


def test_channels_beyond_dim_are_left_alone() -> None:
    """Guards partial rotation: the rest bit for bit, the first part as if it were all."""
    heads, positions = heads_of(4, 10), torch.arange(4) + 7
    out = Rope(dim=4).rotate(heads, positions)
    assert torch.equal(out[..., 4:], heads[..., 4:])
    assert torch.equal(out[..., :4], Rope(dim=4).rotate(heads[..., :4], positions))
    assert not torch.equal(out[..., :4], heads[..., :4])


def test_bf16_is_rotated_in_fp32_and_rounded_once() -> None:
    """Guards against tables or products in bf16, which lose the position."""
    heads, positions = heads_of(4, 8).bfloat16(), torch.arange(4) + 200
    out = Rope(dim=8).rotate(heads, positions)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, Rope(dim=8).rotate(heads.float(), positions).bfloat16())


@pytest.mark.parametrize(
    ("head_dim", "theta", "parameters"),
    [
        (16, 10000.0, {"factor": 4.0, "original_max_position_embeddings": 256}),
        (
            64,
            500000.0,
            {"factor": 8.0, "original_max_position_embeddings": 8192, "beta_fast": 20.0, "beta_slow": 2.0},
        ),
        (32, 10000.0, {"factor": 2.5, "original_max_position_embeddings": 64, "attention_factor": 1.3}),
    ],
)
def test_yarn_equals_that_of_transformers(head_dim: int, theta: float, parameters: dict[str, Any]) -> None:
    """Guards the mixing ramp and the factor of cos and sin, on which loaded models depend."""
    length = parameters["original_max_position_embeddings"]
    rope_parameters = {"rope_type": "yarn", "rope_theta": theta, **parameters}
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=int(length * parameters["factor"]),
        rope_parameters=rope_parameters,
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    yarn = Yarn(
        factor=parameters["factor"],
        original_length=length,
        beta_fast=parameters.get("beta_fast", 32.0),
        beta_slow=parameters.get("beta_slow", 1.0),
        attention_factor=parameters.get("attention_factor"),
    )
    assert yarn.amplitude() == pytest.approx(factor, rel=1e-12)
    plain = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    torch.testing.assert_close(yarn.stretch(plain, head_dim, theta), frequencies, rtol=2e-6, atol=0)
    cos, sin = Rope(dim=head_dim, theta=theta, yarn=yarn).tables(torch.tensor([3]))
    torch.testing.assert_close(cos[0], (3 * frequencies).cos() * factor, rtol=0, atol=3e-6)
    torch.testing.assert_close(sin[0], (3 * frequencies).sin() * factor, rtol=0, atol=3e-6)


def test_yarn_of_factor_one_changes_nothing() -> None:
    """Guards the unstretched end of the ramp and its amplitude."""
    positions = torch.arange(20)
    yarn = Yarn(factor=1.0, original_length=128)
    for stretched, plain in zip(
        Rope(dim=8, yarn=yarn).tables(positions), Rope(dim=8).tables(positions), strict=True
    ):
        torch.testing.assert_close(stretched, plain)
    assert Yarn(factor=math.e, original_length=8).amplitude() == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rope(dim=3), r"^dim: expected an even number.*got 3"),
        (lambda: Rope(dim=0), r"^dim: expected an even number.*got 0"),
        (lambda: Rope(dim=4, theta=1.0), r"^theta: expected more than 1, and finite, got 1.0"),
        (lambda: Rope(dim=4, theta=math.nan), r"^theta: expected more than 1, and finite, got nan"),
        (lambda: Yarn(factor=0.5, original_length=8), r"^factor: expected at least 1, and finite, got 0.5"),
        (lambda: Yarn(factor=math.nan, original_length=8), r"^factor: expected .*got nan"),
        (lambda: Yarn(factor=2.0, original_length=0), r"^original_length: expected at least 1"),
        (lambda: Yarn(factor=2.0, original_length=8, beta_slow=0.0), r"^beta_slow: expected more than 0"),
        (lambda: Yarn(factor=2.0, original_length=8, beta_fast=1.0), r"^beta_fast: expected more than beta_"),
        (
            lambda: Yarn(factor=2.0, original_length=8, attention_factor=math.inf),
            r"^attention_factor: expected more than 0, and finite",
        ),
    ],
)
def test_impossible_sizes_are_refused(make: Any, message: str) -> None:
    """Guards against rotations that would silently be wrong."""
    with pytest.raises(ValueError, match=message):
        make()
