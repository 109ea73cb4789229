"""The structures of csrc/interface.h, filled from tensors."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from trisparse.config import SparseConfig

DATA_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
BRANCHES = ("compressed", "selected", "window")


class TensorView(ctypes.Structure):
    """`struct Tensor`: address, and strides of batch, row and head in elements."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("batch_stride", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
    ]


class BranchViews(ctypes.Structure):
    """`struct Branch`."""

    _fields_ = [
        (name, TensorView) for name in ("key", "value", "out", "log_sum_exp", "grad_key", "grad_value")
    ]


class ProblemStructure(ctypes.Structure):
    """`struct Problem`."""

    _fields_ = [
        ("data_type", ctypes.c_int32),
        ("gates_type", ctypes.c_int32),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("batch", "query_rows", "heads", "groups", "head_dim", "value_dim", "tokens", "compressed"),
                *("compress_block", "compress_stride", "select_block"),
                *("num_selected", "num_initial", "num_local", "window"),
            )
        ),
        ("scale", ctypes.c_double),
        ("query_start", ctypes.c_int64),
        ("num_documents", ctypes.c_int64),
        ("bounds", ctypes.c_void_p),
        *(
            (name, TensorView)
            for name in ("query", "gates", "out", "grad_out", "grad_query", "grad_gates", "ids")
        ),
        ("slots", ctypes.c_int64),
        ("select", ctypes.c_int32),
        ("branches", BranchViews * len(BRANCHES)),
    ]


class Problem:
    """One call of the native kernels: keeps the tensors alive whose addresses it holds."""

    def __init__(
        self,
        query: Tensor,
        groups: int,
        value_dim: int,
        config: SparseConfig,
        scale: float,
        cu_seqlens: Tensor | None,
        query_start: int,
    ) -> None:
        self.structure = ProblemStructure()
        self._kept: list[Tensor] = []
        batch, rows, heads, head_dim = query.shape
        self._set(data_type=DATA_TYPES[query.dtype], batch=batch, query_rows=rows, heads=heads)
        self._set(groups=groups, head_dim=head_dim, value_dim=value_dim)
        for name in ("compress_block", "compress_stride", "select_block"):
            self._set(**{name: getattr(config, name)})
        for name in ("num_selected", "num_initial", "num_local", "window"):
            self._set(**{name: getattr(config, name)})
        self._set(scale=scale, query_start=query_start)
        if cu_seqlens is not None:
            bounds = cu_seqlens.contiguous()
            self._kept.append(bounds)
            self._set(num_documents=len(bounds) - 1, bounds=bounds.data_ptr())
        self.give("query", query)

    def _set(self, **numbers: Any) -> None:
        for name, number in numbers.items():
            setattr(self.structure, name, number)

    def _view(self, tensor: Tensor) -> TensorView:
        """`tensor` [batch, row, head, feature] or [batch, row, head]; copied if its features are apart."""
        wide = tensor if tensor.dim() == 4 else tensor.unsqueeze(3)
        if wide.stride(3) != 1 and wide.shape[3] > 1:
            wide = wide.contiguous()
        self._kept.append(wide)
        # no address would mean "not given"; a tensor without elements is given, and never read
        return TensorView(wide.data_ptr() or ctypes.addressof(self.structure), *wide.stride()[:3])

    def give(self, name: str, tensor: Tensor) -> None:
        """Set a tensor of the call by its name in `struct Problem`."""
        setattr(self.structure, name, self._view(tensor))
        if name == "gates":
            self._set(gates_type=DATA_TYPES[tensor.dtype])
        if name == "ids":
            self._set(slots=tensor.shape[3])

    def give_branch(self, branch: str, **tensors: Tensor | None) -> None:
        """Set tensors of a branch by their names in `struct Branch`; what is None stays out."""
        views = self.structure.branches[BRANCHES.index(branch)]
        for name, tensor in tensors.items():
            if tensor is not None:
                setattr(views, name, self._view(tensor))
        key = tensors.get("key")
        if key is not None:
            self._set(**{"compressed" if branch == "compressed" else "tokens": key.shape[1]})
