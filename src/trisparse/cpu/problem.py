"""The structures of csrc/interface.h, filled from tensors."""

import ctypes

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.invariance import is_batch_invariant

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
        ("starts", ctypes.c_void_p),
        ("window_ring", ctypes.c_int64),
        ("query_compressed", TensorView),
        ("invariant", ctypes.c_int32),
    ]


# the structure as 8-byte words: a tensor's four are set at once, which takes half the time of four fields
Words = ctypes.c_int64 * (ctypes.sizeof(ProblemStructure) // 8)
# the first word of a tensor by its name in the structure, or by its branch and its name there
WORD_OF: dict[str | tuple[str, str], int] = {
    field[0]: getattr(ProblemStructure, field[0]).offset // 8 for field in ProblemStructure._fields_
}
WORD_OF |= {
    (branch, field[0]): WORD_OF["branches"]
    + (index * ctypes.sizeof(BranchViews) + getattr(BranchViews, field[0]).offset) // 8
    for index, branch in enumerate(BRANCHES)
    for field in BranchViews._fields_
}


def empty_ids(query: Tensor, key: Tensor, config: SparseConfig) -> Tensor:
    """Memory for ids int32 [B, Tq, G, S]."""
    return query.new_empty((*query.shape[:2], key.shape[2], config.num_selected), dtype=torch.int32)


def with_whole_rows(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy if its features, the last dimension, are apart."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def _sizes(config: SparseConfig, positions: int) -> dict[str, int]:
    """The sizes of `config`, made as small as those that are the same for rows below `positions`.

    Whatever the kernels compute of them then fits their integers, and no memory is made for blocks that are
    not there.
    """
    block, stride = config.compress_block, config.compress_stride
    if block > positions:
        # no compressed block is complete
        block = stride = positions + 1
    # where selection block 0 holds all tokens
    whole = -(-max(positions, block) // stride) * stride
    return {
        "compress_block": block,
        "compress_stride": stride,
        "select_block": min(config.select_block, whole),
        "window": min(config.window, max(positions, 1)),
    }


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
        room: int | None = None,
    ) -> None:
        """`room`: tokens that a row may have, if not those up to the last query row."""
        # one call with everything: setting fields one by one takes a tenth of a short call
        batch, rows, heads, head_dim = query.shape
        self.dtype = query.dtype
        self._kept: list[Tensor] = []
        self.structure = structure = ProblemStructure(
            data_type=DATA_TYPES[query.dtype],
            batch=batch,
            query_rows=rows,
            heads=heads,
            groups=groups,
            head_dim=head_dim,
            value_dim=value_dim,
            num_selected=config.num_selected,
            num_initial=config.num_initial,
            num_local=config.num_local,
            scale=scale,
            query_start=query_start,
            invariant=is_batch_invariant(),
            **_sizes(config, query_start + rows if room is None else room),
        )
        self.words = Words.from_buffer(structure)
        if cu_seqlens is not None:
            bounds = cu_seqlens.contiguous()
            self._kept.append(bounds)
            structure.num_documents, structure.bounds = len(bounds) - 1, bounds.data_ptr()
        self.give("query", query)

    def _set(self, place: int, tensor: Tensor) -> None:
        """`tensor` [batch, row, head, feature] or [batch, row, head]; copied if its features are apart."""
        wide = with_whole_rows(tensor if tensor.dim() == 4 else tensor.unsqueeze(3))
        self._kept.append(wide)
        # no address would mean "not given"; a tensor without elements is given, and never read
        address = wide.data_ptr() or ctypes.addressof(self.structure)
        self.words[place : place + 4] = [address, *wide.stride()[:3]]

    def give(self, name: str, tensor: Tensor) -> None:
        """Set a tensor of the call by its name in `struct Problem`."""
        self._set(WORD_OF[name], tensor)
        if name == "gates":
            self.structure.gates_type = DATA_TYPES[tensor.dtype]
        if name == "ids":
            self.structure.slots = tensor.shape[3]

    def give_starts(self, starts: Tensor) -> None:
        """Set a start for each batch row, int32 [B], instead of one for all."""
        starts = starts.contiguous()
        self._kept.append(starts)
        self.structure.starts = starts.data_ptr()

    def give_branch(self, branch: str, **tensors: Tensor | None) -> None:
        """Set tensors of a branch by their names in `struct Branch`; what is None stays out."""
        for name, tensor in tensors.items():
            if tensor is not None:
                self._set(WORD_OF[branch, name], tensor)
        key = tensors.get("key")
        if key is not None:
            setattr(self.structure, "compressed" if branch == "compressed" else "tokens", key.shape[1])
