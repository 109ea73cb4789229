"""A model that says what it is told to, for tests of what a user sees and when."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from trisparse.models import TrisparseForCausalLM


def script(
    monkeypatch: pytest.MonkeyPatch, text: str, before: Callable[[int], None] = lambda _: None
) -> None:
    """Have every model say the bytes of `text` again and again; `before(n)` runs before its n-th forward."""
    data, forward = text.encode(), TrisparseForCausalLM.forward
    calls = 0

    def scripted(model: TrisparseForCausalLM, *arguments: Any, **others: Any) -> Any:
        nonlocal calls
        before(calls)
        output = forward(model, *arguments, **others)
        output.logits = torch.zeros_like(output.logits)
        output.logits[..., data[calls % len(data)]] = 9.0
        calls += 1
        return output

    monkeypatch.setattr(TrisparseForCausalLM, "forward", scripted)
