"""Options that hold more than a word, checked."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def numbers(name: str, text: str) -> list[int]:
    """`1,2,3` as given to option `name`.

    Raises:
        ValueError: anything else.
    """
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{name}: expected whole numbers separated by commas, got {text!r}") from None


def dtype_named(name: str) -> "torch.dtype":
    """`bfloat16` as `torch.bfloat16`.

    Raises:
        ValueError: a name that no benchmark takes.
    """
    import torch

    if name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype: expected float32, bfloat16 or float16, got {name!r}")
    return getattr(torch, name)
