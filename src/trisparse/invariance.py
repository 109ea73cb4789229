"""A mode in which a token's bits do not depend on how its sequence came in chunks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, pad, silu
from torch.overrides import TorchFunctionMode

from trisparse.scoped import Scoped

# rows of every product with a weight: a library may add up a row in another order among other numbers of rows
_ROWS = 64
_ENABLED = Scoped("trisparse_batch_invariant", False)


@contextmanager
def batch_invariant() -> Iterator[None]:
    """Inside, a token decoded from a cache gets the very bits of the forward over the whole sequence.

    Outside, few new tokens take kernels made for decoding, which add in another order, and a product with a
    weight matrix may round differently for another number of rows. Inside, attention takes the kernels of the
    whole forward, products with weights go by 64 rows at a time, and sigmoid, silu and gelu are put together
    from operations that round alike wherever in memory a number lies; all are slower for few tokens.

    Attention of a row never depends on its neighbours in the batch, inside or outside. Holds for the CPU
    kernels on one machine and number of threads, and for this thread and what it awaits.
    """
    with _ENABLED.set(True), _SameBits():
        yield


def is_batch_invariant() -> bool:
    """Whether the mode is on."""
    return _ENABLED.get()


class _SameBits(TorchFunctionMode):
    """Replaces what a model uses and PyTorch rounds by where in a batch a row lies."""

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is linear:
            return _by_rows(linear, *_linear_arguments(*args, **kwargs))
        if function in _MATMULS and not kwargs and args[0].dim() > 1 and args[1].dim() == 2:
            return _by_rows(torch.matmul, *args)
        # the defaults of silu and gelu come as keywords
        if function in _ELEMENTWISE and set(kwargs.values()) <= {False, "none"}:
            wide = args[0].to(torch.promote_types(args[0].dtype, torch.float32))
            return _ELEMENTWISE[function](wide).to(args[0].dtype)
        return function(*args, **kwargs)


def _linear_arguments(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Any, ...]:
    """Those of `linear`, which may come by name."""
    return input, weight, bias


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


# PyTorch computes the last numbers of a run, those that fill no vector, by another formula than the rest
_ELEMENTWISE: dict[Callable, Callable[[Tensor], Tensor]] = {
    torch.sigmoid: _sigmoid,
    Tensor.sigmoid: _sigmoid,
    silu: lambda x: x * _sigmoid(x),
    gelu: lambda x: 0.5 * x * (1 + torch.erf(x * 0.5**0.5)),
}
_MATMULS = (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)


def _by_rows(product: Callable[..., Tensor], inputs: Tensor, *others: Tensor | None) -> Tensor:
    """`product(inputs, *others)` for inputs [..., K]."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    count = len(rows)
    rows = pad(rows, (0, 0, 0, -count % _ROWS))
    parts = [product(part, *others) for part in rows.split(_ROWS)]
    out = torch.cat(parts) if parts else product(rows, *others)
    return out[:count].reshape(*inputs.shape[:-1], out.shape[-1])
