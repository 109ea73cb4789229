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


def device_named(name: str) -> str:
    """`name`, a device that benchmarks take and that is here.

    Raises:
        ValueError: it is not.
    """
    import torch

    if name not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected cpu, for torch sees no GPU; got 'cuda'")
    return name


def dtype_named(name: str) -> "torch.dtype":
    """`bfloat16` as `torch.bfloat16`.

    Raises:
        ValueError: a name that no benchmark takes.
    """
    import torch

    if name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype: expected float32, bfloat16 or float16, got {name!r}")
    return getattr(torch, name)
