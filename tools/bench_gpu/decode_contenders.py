"""What takes a decode step on a GPU: our op, PyTorch's full attention by each of its kernels, FlashAttention.

Full attention by our own kernels is no contender here: for one token they would fill a GPU only in part.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from say import say
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad

from trisparse.bench.decode_case import DecodeCase
from trisparse.bench.sdpa_forms import FORMS
from trisparse.bench.step import Step
from trisparse.bench.step_contender import Call, Full, SdpaStep, SparseStep, StepContender

# which kernel to force; None leaves the choice to PyTorch
_KERNELS = {
    "default": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@dataclass(frozen=True)
class ForcedSdpa(SdpaStep):
    """Each form of the call with each kernel: `flash folded`. RuntimeError where a kernel refuses it."""

    def forms(self, _: DecodeCase) -> Sequence[str]:
        return [f"{kernel} {form}" for kernel in _KERNELS for form in FORMS]

    def prepare(self, step: Step, case: DecodeCase, form: str) -> Call:
        kernel, _, plain = form.partition(" ")
        call, forced = super().prepare(step, case, plain), _KERNELS[kernel]

        def run() -> Tensor:
            with nullcontext() if forced is None else sdpa_kernel(forced):
                return call()

        return run


@dataclass(frozen=True)
class FlashStep(Full):
    """`flash_attn_with_kvcache` of FlashAttention 2 ("fa2", which wants D = E) or 3 ("fa3")."""

    name: str
    function: Callable[..., Tensor | tuple[Tensor, ...]]
    equal_dims: bool

    def instructions(self, _: torch.dtype) -> str:
        return ""

    def forms(self, _: DecodeCase) -> Sequence[str]:
        return [""]

    def step(self, case: DecodeCase, device: torch.device) -> Step:
        step = super().step(case, device)
        key, value = step.cache
        if self.equal_dims:
            value = pad(value, (0, max(0, case.head_dim - case.value_dim)))
        return Step(step.query, step.gates, (key, value))

    def prepare(self, step: Step, case: DecodeCase, _: str) -> Call:
        key, value = step.cache
        lengths = torch.tensor(case.lengths, dtype=torch.int32, device=key.device)

        def run() -> Tensor:
            out = self.function(step.query, key, value, cache_seqlens=lengths, causal=True)
            # some versions return the log-sum-exp too
            return (out[0] if isinstance(out, tuple) else out)[..., : case.value_dim]

        return run

    def expect(self, step: Step, ids: Tensor | None, case: DecodeCase, row: int) -> Tensor:
        key, value = step.cache
        plain = Step(step.query, step.gates, (key, value[..., : case.value_dim]))
        return super().expect(plain, ids, case, row)


def decode_contenders(backend: str) -> list[StepContender]:
    """Our op by `backend`, and every full attention that is at hand."""
    return [SparseStep(backend), ForcedSdpa(), *_flash_attentions()]


def _flash_attentions() -> Iterator[FlashStep]:
    for name, module, equal_dims in (("fa3", "flash_attn_interface", False), ("fa2", "flash_attn", True)):
        try:
            function = importlib.import_module(module).flash_attn_with_kvcache
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            say(f"decode {name}: left out, {error}")
        else:
            yield FlashStep(name, function, equal_dims)
