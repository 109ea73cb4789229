"""Which precision trains fastest here."""

from typing import Literal

import torch

from trisparse import backends


def fast_precision() -> Literal["float32", "bfloat16"]:
    """ "bfloat16" on a GPU, or CPU, with products of it in hardware; else "float32".

    Without a GPU this builds the CPU kernels, if that has not been done yet.
    """
    if torch.accelerator.is_available():
        fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = backends.fast_cpu_dtype() == torch.bfloat16
    return "bfloat16" if fast else "float32"
