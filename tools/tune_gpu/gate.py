"""Whether a tile computes what the pinned one does, whose results the tests compare with the reference."""

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from problem import Problem
from torch import Tensor

from trisparse.bench.chosen import selection_ratio
from trisparse.bench.gate import error_ratio, worst

# rows that are compared at once: a copy in float64 of all would be several GB
_COMPARED = 8192
# rows whose blocks are scored again
_SCORED = 8


def worst_ratio(actual: Mapping[str, Tensor], wanted: Mapping[str, Tensor], problem: Problem) -> float:
    """The worst error of a trial's results over what is allowed beside those of another."""
    return worst([ratio for name in wanted for ratio in _ratios(name, actual[name], wanted[name], problem)])


def _ratios(name: str, actual: Tensor, wanted: Tensor, problem: Problem) -> Iterator[float]:
    if actual.shape != wanted.shape or actual.dtype != wanted.dtype:
        yield math.inf
    elif name == "ids":
        yield from _selection_ratios(actual, wanted, problem)
    else:
        for start, stop in pairwise([*range(0, actual.shape[1], _COMPARED), actual.shape[1]]):
            ours, theirs = actual[:, start:stop], wanted[:, start:stop]
            if name == "lse":
                ours, theirs = _weights(ours, theirs), torch.ones_like(theirs)
            # sums in fp32 are of weights that were rounded, in another order for another tile
            dtype = problem.case.dtype
            low = theirs.to(dtype)
            yield error_ratio(ours.to(dtype), low, theirs.double(), gradient=name.startswith("d "))


def _weights(actual: Tensor, wanted: Tensor) -> Tensor:
    """What a row's weights are wrong by if its log-sum-exp is; 1 where both are the same, also -inf."""
    return torch.where(actual == wanted, 0.0, actual - wanted).exp()


def _selection_ratios(actual: Tensor, wanted: Tensor, problem: Problem) -> Iterator[float]:
    """Where blocks differ, if anywhere, they must be as good by their scores; the last row always."""
    different = (actual != wanted).any(dim=3).any(dim=2).any(dim=0).nonzero().flatten()
    rows = {*different[:_SCORED].tolist(), actual.shape[1] - 1}
    query, key, config = problem.query, problem.compressed[0], problem.case.config
    for row in rows:
        own = slice(row, row + 1)
        yield selection_ratio(actual[:, own], query[:, own], key, config, row)
