"""What can run here, why the rest cannot, and what `backend="auto"` means."""

import importlib
import logging
from functools import cache
from types import ModuleType

import torch

_LOG = logging.getLogger("trisparse")

# name -> the room that implements it; "reference" is called directly, because autograd differentiates it
_ROOMS = {"torch": "trisparse.chunked"}
_MISSING = {
    "cpu": "the native CPU kernels are not part of this version",
    "triton": "the Triton kernels are not part of this version",
}
NAMES = ("reference", "torch", "cpu", "triton")


def available_backends() -> dict[str, str | None]:
    """Backend name -> None if it can run here, else the reason why it cannot."""
    return {name: _MISSING.get(name) for name in NAMES}


def _best() -> str:
    """What "auto" means here."""
    return "torch"


@cache
def _log_choice(name: str) -> None:
    """Say once what "auto" means."""
    _LOG.info("backend 'auto' is %r", name)


def choose(backend: str) -> str:
    """The backend to run: the one asked for, or for "auto" the best that can run.

    Raises:
        TypeError: `backend` is not a string.
        ValueError: `backend` is not a known name.
        NotImplementedError: it is known but cannot run here; nothing else is tried in its place.
    """
    if not isinstance(backend, str):
        raise TypeError(f"backend: expected a string, got {type(backend).__name__} {backend!r}")
    if backend == "auto":
        if not torch.compiler.is_compiling():
            _log_choice(_best())
        return _best()
    if backend not in NAMES:
        raise ValueError(f"backend: expected 'auto' or one of {', '.join(NAMES)}; got {backend!r}")
    reason = available_backends()[backend]
    if reason is not None:
        raise NotImplementedError(f"backend: {backend!r} cannot run here: {reason}")
    return backend


def room(name: str) -> ModuleType:
    """The module with the branch functions of backend `name`; imported when it is first used."""
    return importlib.import_module(_ROOMS[name])
