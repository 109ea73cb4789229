"""Options that hold more than a word, checked, and those that several verbs share."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch


Device = Annotated[str, typer.Option(help="auto, cpu or cuda; auto takes a GPU where there is one.")]
WeightDtype = Annotated[
    str | None,
    typer.Option(help="Weights and cache: float32, bfloat16 or float16; as saved if not given."),
]


def placement(device: str, dtype: str | None) -> dict[str, Any]:
    """Where and in what a model is loaded, as `load_model` takes it.

    Raises:
        ValueError: a device that is not here, or a wrong name.
    """
    return {"device": device_named(device), "dtype": None if dtype is None else dtype_named(dtype)}


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
    """`name`, a device that is here; of "auto", a GPU where there is one.

    Raises:
        ValueError: it is not.
    """
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu or cuda, got {name!r}")
    if name == "cpu" or torch.cuda.is_available():
        return "cpu" if name == "cpu" else "cuda"
    if name == "cuda":
        raise ValueError("device: expected cpu, for torch sees no GPU; got 'cuda'")
    return "cpu"


def dtype_named(name: str) -> "torch.dtype":
    """`bfloat16` as `torch.bfloat16`.

    Raises:
        ValueError: another name.
    """
    import torch

    if name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype: expected float32, bfloat16 or float16, got {name!r}")
    return getattr(torch, name)
