"""Rotary position embedding, also stretched to longer contexts by YaRN.

Holds no tensors: the frequencies are a few dozen numbers, and buffers would have to be restored on loading.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """YaRN (arXiv 2309.00071): slow frequencies are interpolated by `factor`, fast ones kept.

    Attributes:
        factor: new context length over the trained one.
        original_length: context length the model was trained with, tokens.
        beta_fast, beta_slow: turns over the trained context above which a frequency is kept, below which it
            is interpolated; between them the two are mixed linearly.
        attention_factor: factor of cos and sin; 0.1 * ln(factor) + 1 if None.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        for name in ("factor", "original_length"):
            if not 1 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected at least 1, and finite, got {getattr(self, name)}")
        for name in ("beta_fast", "beta_slow", "attention_factor"):
            number = getattr(self, name)
            if number is not None and not 0 < number < math.inf:
                raise ValueError(f"{name}: expected more than 0, and finite, got {number}")
        fast, slow = self.beta_fast, self.beta_slow
        if fast <= slow:
            raise ValueError(f"beta_fast: expected more than beta_slow={slow}, got {fast}")

    def amplitude(self) -> float:
        """What cos and sin are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0

    def stretch(self, frequencies: Tensor, dim: int, theta: float) -> Tensor:
        """The frequencies [dim / 2] for the longer context."""

        def channel(turns: float) -> float:
            wavelength = self.original_length / (turns * 2 * math.pi)
            return dim * math.log(wavelength) / (2 * math.log(theta))

        low = max(math.floor(channel(self.beta_fast)), 0)
        high = min(math.ceil(channel(self.beta_slow)), dim - 1)
        steps = torch.arange(dim // 2, dtype=frequencies.dtype, device=frequencies.device)
        interpolated = ((steps - low) / max(high - low, 0.001)).clamp(0, 1)
        return frequencies / self.factor * interpolated + frequencies * (1 - interpolated)


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Turns the first `dim` channels of a head, pair (i, i + dim / 2) by position * theta ** (-2i / dim)."""

    dim: int
    theta: float = 10000.0
    yarn: Yarn | None = None

    def __post_init__(self) -> None:
        if isinstance(self.dim, bool) or not isinstance(self.dim, int):
            raise TypeError(f"dim: expected an int, got {type(self.dim).__name__} {self.dim!r}")
        if self.dim < 2 or self.dim % 2:
            raise ValueError(f"dim: expected an even number of channels, at least 2, got {self.dim}")
        if not 1 < self.theta < math.inf:
            raise ValueError(f"theta: expected more than 1, and finite, got {self.theta}")

    def tables(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, fp32 [..., dim / 2], for integer positions [...]."""
        exponents = torch.arange(0, self.dim, 2, dtype=torch.float32, device=positions.device) / self.dim
        frequencies = self.theta**-exponents
        amplitude = 1.0
        if self.yarn is not None:
            frequencies = self.yarn.stretch(frequencies, self.dim, self.theta)
            amplitude = self.yarn.amplitude()
        angles = positions[..., None].float() * frequencies
        return angles.cos() * amplitude, angles.sin() * amplitude

    def rotate(self, heads: Tensor, positions: Tensor) -> Tensor:
        """Rotate `heads` [B, T, H, D] at `positions` [T] or [B, T] in at least fp32 -> its dtype."""
        dtype = torch.promote_types(heads.dtype, torch.float32)
        cos, sin = (table.unsqueeze(-2).to(dtype) for table in self.tables(positions))
        first, second = heads[..., : self.dim].to(dtype).chunk(2, dim=-1)
        rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        return torch.cat([rotated.to(heads.dtype), heads[..., self.dim :]], dim=-1)
