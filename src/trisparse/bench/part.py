"""A part of our op as something to time: one branch, or the choice of blocks."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trisparse import api, backends
from trisparse.bench.cases import Case, Tensors, sparse_inputs
from trisparse.bench.chosen import selection_ratio
from trisparse.bench.contender import WIDE_FACTOR
from trisparse.bench.expected import first_in_window
from trisparse.config import SparseConfig

# branch -> where `sparse_inputs` has its keys; its values are next
_PLACES = {"compressed": 1, "select": 1, "selected": 3, "window": 5}
PARTS = tuple(_PLACES)


@dataclass(frozen=True)
class Part:
    """One of `PARTS` by one backend. In the whole op they may share passes: their times do not add up to its.

    `ids`: shape of a query -> the blocks that the selected branch reads, chosen outside of the time.
    """

    backend: str
    part: str
    gradient_factor: float = WIDE_FACTOR
    ids: dict[torch.Size, Tensor] = field(default_factory=dict, hash=False, compare=False)

    @property
    def name(self) -> str:
        """What the column `backend` calls it."""
        return f"{self.backend}:{self.part}"

    @property
    def differentiable(self) -> bool:
        """Whether it has a backward."""
        return self.part != "select"

    def inputs(self, case: Case, device: torch.device) -> Tensors:
        tensors = sparse_inputs(case, device)
        if self.part == "selected":
            self.ids[tensors[0].shape] = self._choose(tensors[0], tensors[1], case.config)
        place = _PLACES[self.part]
        return tensors[0], *tensors[place : place + (1 if self.part == "select" else 2)]

    def instructions(self, dtype: torch.dtype) -> str:
        return backends.cpu_instructions(dtype) if self.backend == "cpu" else ""

    def attend(self, tensors: Tensors, config: SparseConfig) -> Tensor:
        return self._call(tensors, self.ids.get(tensors[0].shape), config, backend=self.backend)

    def select(self, tensors: Tensors, config: SparseConfig) -> Tensor | None:
        """The ids behind the call; those of the selected branch are given, and judged with the whole op."""
        if self.part == "selected":
            return self.ids[tensors[0].shape]
        return self._choose(tensors[0], tensors[1], config) if self.part == "select" else None

    def expect(self, tensors: Tensors, ids: Tensor | None, rows: slice, config: SparseConfig) -> Tensor:
        if self.part == "select":
            assert ids is not None
            return ids[:, rows].to(tensors[0].dtype)
        # tokens before a row's window cost the reference time only
        first = first_in_window(rows.start, config) if self.part == "window" else 0
        stop = None if self.part == "compressed" else rows.stop
        near = (tensors[0][:, rows], *(tensor[:, first:stop] for tensor in tensors[1:]))
        ids = None if ids is None else ids[:, rows]
        return self._call(near, ids, config, backend="reference", query_start=rows.start - first)

    def selection_ratio(
        self, tensors: Tensors, ids: Tensor | None, rows: slice, config: SparseConfig
    ) -> float:
        if self.part != "select":
            return 0.0
        assert ids is not None
        return selection_ratio(ids[:, rows], tensors[0][:, rows], tensors[1], config, rows.start)

    def _choose(self, query: Tensor, key: Tensor, config: SparseConfig) -> Tensor:
        return api.select_blocks(query, key, config, backend=self.backend)

    def _call(self, tensors: Tensors, ids: Tensor | None, config: SparseConfig, **place: Any) -> Tensor:
        query, key = tensors[:2]
        if self.part == "select":
            # numbers, as the check wants them
            return api.select_blocks(query, key, config, **place).to(query.dtype)
        value = tensors[2]
        if self.part == "selected":
            assert ids is not None
            return api.selected_attention(query, key, value, ids, config, **place)
        if self.part == "window":
            return api.window_attention(query, key, value, config, **place)
        return api.compressed_attention(query, key, value, config, **place)[0]
