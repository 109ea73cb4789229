"""What is timed: a backend of our op, or PyTorch's full attention, and what each ought to return."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from trisparse import api, backends
from trisparse.bench.cases import Case, Tensors, dense_inputs, sparse_inputs
from trisparse.bench.chosen import selection_ratio
from trisparse.bench.expected import dense_rows, first_in_window, sparse_rows
from trisparse.config import SparseConfig
from trisparse.report.measurement import BASELINE

# times the reference's own error in fp32, where the order of sums alone can multiply it
WIDE_FACTOR = 10.0


class Contender(Protocol):
    """An attention call and its specification. Outputs are [B, T, H, E], whatever the inputs' layout."""

    @property
    def name(self) -> str:
        """What the column `backend` calls it."""

    @property
    def differentiable(self) -> bool:
        """Whether it has a backward."""

    @property
    def gradient_factor(self) -> float:
        """How many times the reference's own error in fp32 its gradients may be off."""

    def inputs(self, case: Case, device: torch.device) -> Tensors:
        """The tensors it takes."""

    def instructions(self, dtype: torch.dtype) -> str:
        """The instruction set of the CPU kernels that compute in `dtype`; empty if none do."""

    def attend(self, tensors: Tensors, config: SparseConfig) -> Tensor:
        """The call that is timed."""

    def select(self, tensors: Tensors, config: SparseConfig) -> Tensor | None:
        """The ids [B, T, G, S] behind the call, or None if it chooses nothing."""

    def expect(self, tensors: Tensors, ids: Tensor | None, rows: slice, config: SparseConfig) -> Tensor:
        """The reference's rows [B, rows, H, E] for these ids, in the tensors' dtype, differentiable."""

    def selection_ratio(
        self, tensors: Tensors, ids: Tensor | None, rows: slice, config: SparseConfig
    ) -> float:
        """How far the ids of these rows are from the best ones; at most 1 is right."""


@dataclass(frozen=True)
class Sparse:
    """`sparse_attention` with one backend."""

    name: str
    differentiable: bool = True
    gradient_factor: float = WIDE_FACTOR

    def inputs(self, case: Case, device: torch.device) -> Tensors:
        return sparse_inputs(case, device)

    def instructions(self, dtype: torch.dtype) -> str:
        return backends.cpu_instructions(dtype) if self.name == "cpu" else ""

    def attend(self, tensors: Tensors, config: SparseConfig) -> Tensor:
        query, *pairs, gates = tensors
        compressed, selected, window = zip(pairs[0::2], pairs[1::2], strict=True)
        return api.sparse_attention(query, compressed, selected, window, gates, config, backend=self.name)

    def select(self, tensors: Tensors, config: SparseConfig) -> Tensor:
        return api.select_blocks(tensors[0], tensors[1], config, backend=self.name)

    def expect(self, tensors: Tensors, ids: Tensor | None, rows: slice, config: SparseConfig) -> Tensor:
        assert ids is not None
        near = slice(first_in_window(rows.start, config), rows.stop)
        return sparse_rows(
            tensors[0][:, rows],
            tensors[7][:, rows],
            (tensors[1], tensors[2]),
            (tensors[3][:, : rows.stop], tensors[4][:, : rows.stop]),
            (tensors[5][:, near], tensors[6][:, near]),
            ids[:, rows],
            config,
            rows.start,
        )

    def selection_ratio(
        self, tensors: Tensors, ids: Tensor | None, rows: slice, config: SparseConfig
    ) -> float:
        assert ids is not None
        return selection_ratio(ids[:, rows], tensors[0][:, rows], tensors[1], config, rows.start)


@dataclass(frozen=True)
class Dense:
    """PyTorch's `scaled_dot_product_attention`, causal, over all tokens: the baseline."""

    name: str = BASELINE
    differentiable: bool = True
    # measured: 11.9 for d value of 2048 tokens with AVX2
    gradient_factor: float = 2 * WIDE_FACTOR

    def inputs(self, case: Case, device: torch.device) -> Tensors:
        return dense_inputs(case, device)

    def instructions(self, _: torch.dtype) -> str:
        return ""

    def attend(self, tensors: Tensors, _: SparseConfig) -> Tensor:
        query, key, value = tensors
        value_dim = value.shape[3]
        # on the CPU, PyTorch's fused attention wants D = E: with zero channels it is many times as fast
        value = pad(value, (0, max(0, key.shape[3] - value_dim)))
        grouped = query.shape[1] != key.shape[1]
        # on the CPU, PyTorch's fast backward knows no groups: it falls back to plain matrix products, 4 times
        # as slow as the fast one over repeated heads; the baseline gets the better of the two
        if grouped and query.requires_grad and query.device.type == "cpu":
            repeats = query.shape[1] // key.shape[1]
            key, value = (_repeat_heads(tensor, repeats) for tensor in (key, value))
            grouped = False
        out = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        return out[..., :value_dim].transpose(1, 2)

    def select(self, _: Tensors, __: SparseConfig) -> None:
        return None

    def expect(self, tensors: Tensors, _: Tensor | None, rows: slice, __: SparseConfig) -> Tensor:
        query, key, value = (tensor.transpose(1, 2)[:, : rows.stop] for tensor in tensors)
        return dense_rows(query[:, rows], key, value, rows.start)

    def selection_ratio(self, _: Tensors, __: Tensor | None, ___: slice, ____: SparseConfig) -> float:
        return 0.0


def _repeat_heads(tensor: Tensor, repeats: int) -> Tensor:
    """[B, G, T, *] -> [B, G * repeats, T, *]; of one group a view."""
    return tensor[:, :, None].expand(-1, -1, repeats, -1, -1).flatten(1, 2)


def contender(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Contender:
    """The contender called `name`: "sdpa" or a backend for tensors of `dtype` on a device of type `device`.

    Raises:
        TypeError, ValueError, NotImplementedError: as the argument `backend` of `sparse_attention`.
    """
    return Dense() if name == BASELINE else Sparse(backends.choose(name, device, dtype))
