"""What can run here, why the rest cannot, and what `backend="auto"` means."""

import importlib
import importlib.util
import logging
import os
from functools import cache
from types import ModuleType

import torch

_LOG = logging.getLogger("trisparse")

# name -> the room that implements it; "reference" is called directly, because autograd differentiates it
_ROOMS = {"torch": "trisparse.chunked", "cpu": "trisparse.cpu.attention", "triton": "trisparse.triton"}
NAMES = ("reference", "torch", "cpu", "triton")
# kernels, best first, and what they take (spec 9); the other two take anything on any device
_NARROW = (torch.float32, torch.bfloat16, torch.float16)
_KERNELS = {"triton": ("cuda", _NARROW), "cpu": ("cpu", _NARROW)}
# backends with one operator for the whole op, forward and backward
FUSED = ("cpu", "triton")


def available_backends() -> dict[str, str | None]:
    """Backend name -> None if it can run here, else the reason why it cannot.

    Asking builds the CPU kernels if that has not been done yet, which takes seconds.
    """
    return {name: _why_not(name) for name in NAMES}


def _why_not(name: str, dtype: torch.dtype = torch.float32) -> str | None:
    """None if backend `name` can run here with tensors of `dtype`, which it takes; else the reason."""
    if name == "triton":
        return _why_not_triton()
    if name == "cpu":
        return importlib.import_module("trisparse.cpu.library").unavailable_reason(dtype)
    return None


def _why_not_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if torch.cuda.is_available() or _interprets():
        return None
    return "torch sees no GPU, and Triton's interpreter is not asked for (TRITON_INTERPRET=1)"


def _interprets() -> bool:
    """Whether Triton kernels run in its interpreter, on the CPU: for tests, thousands of times slower."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _best(device: str, dtype: torch.dtype) -> str:
    """What "auto" means for tensors of `dtype` on `device`, a device type; never an interpreter."""
    for name, (its_device, its_dtypes) in _KERNELS.items():
        if device == its_device and dtype in its_dtypes:
            reason = _why_not(name, dtype)
            if reason is None:
                return _said(name)
            if name == "cpu" and importlib.import_module("trisparse.cpu.library").forced():
                raise NotImplementedError(f"backend: 'auto' cannot run what was asked for: {reason}")
            _warn(name, reason)
    return _said("torch")


# what torch.compiler.assume_constant_result does, without importing all of dynamo with this module: to
# torch.compile the answers are constants, it need not trace a compiler run
for _function in (_why_not, _best):
    _function.__dict__["_dynamo_marked_constant"] = True


@cache
def _said(name: str) -> str:
    """`name`, said once."""
    _LOG.info("backend 'auto' is %r", name)
    return name


@cache
def _warn(name: str, reason: str) -> None:
    """Say once that the best backend is not to be had."""
    _LOG.warning("backend 'auto' is 'torch', which is slower than %r: %s", name, reason)


def choose(backend: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """The backend to run for tensors of `dtype` on a device of type `device`: the one asked for, or the best.

    Raises:
        TypeError: `backend` is not a string.
        ValueError: `backend` is not a known name.
        NotImplementedError: it is known but cannot run here, or not with such tensors; nothing else is tried
            in its place.
    """
    if not isinstance(backend, str):
        raise TypeError(f"backend: expected a string, got {type(backend).__name__} {backend!r}")
    if backend == "auto":
        return _best(device, dtype)
    if backend not in NAMES:
        raise ValueError(f"backend: expected 'auto' or one of {', '.join(NAMES)}; got {backend!r}")
    its_device, its_dtypes = _KERNELS.get(backend, (device, (dtype,)))
    reason = _why_not(backend, dtype if dtype in its_dtypes else its_dtypes[0])
    if reason is not None:
        raise NotImplementedError(f"backend: {backend!r} cannot run here: {reason}")
    if backend == "triton" and _interprets():
        its_device = "cpu"
    if device != its_device or dtype not in its_dtypes:
        names = ", ".join(str(each).removeprefix("torch.") for each in its_dtypes)
        raise NotImplementedError(
            f"backend: {backend!r} takes {names} on {its_device!r}, got {str(dtype).removeprefix('torch.')} "
            f"on {device!r}; 'torch' takes any"
        )
    return backend


def cpu_instructions(dtype: torch.dtype) -> str:
    """The instruction set with which the CPU kernels compute in `dtype`: AMX has no float32, for example.

    Raises:
        BuildError: there are no CPU kernels here.
    """
    return importlib.import_module("trisparse.cpu.attention").instructions_for(dtype)


def fast_cpu_dtype() -> torch.dtype:
    """bfloat16 if the CPU kernels multiply it in hardware, else float32."""
    chosen = choose("auto", "cpu", torch.bfloat16)
    if chosen != "cpu":
        return torch.float32
    sets = importlib.import_module("trisparse.cpu.instructions")
    fast = sets.multiplies_bfloat16(cpu_instructions(torch.bfloat16))
    return torch.bfloat16 if fast else torch.float32


@cache
def room(name: str) -> ModuleType:
    """The module with the branch functions of backend `name`; imported when it is first used."""
    return importlib.import_module(_ROOMS[name])
