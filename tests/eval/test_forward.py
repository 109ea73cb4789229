"""One forward of a measurement: what it leaves as it was, and losses in slices."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from trisparse.eval.forward import evaluating, log_probabilities, logits_of

from .models import Fake, tiny_llama


@pytest.mark.parametrize("slice_elements", [1, 700, 2**22])
def test_slices_equal_the_whole(slice_elements: int) -> None:
    """Guards against tokens lost or doubled at the edge of a slice, and against labels of another slice."""
    logits, targets = torch.randn(3, 11, 50), torch.randint(50, (3, 11))
    targets[0, 4] = targets[2, 10] = -100
    whole = logits.log_softmax(-1).gather(2, targets.clamp(min=0)[:, :, None])[:, :, 0]
    sliced = log_probabilities(logits, targets, slice_elements=slice_elements)
    torch.testing.assert_close(sliced, whole.where(targets >= 0, 0.0))


def test_float32_copies_stay_within_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a float32 copy of all logits at once, which a long context cannot afford."""
    sizes = []
    plain = nn.functional.cross_entropy

    def watched(logits: torch.Tensor, *rest: Any, **other: Any) -> torch.Tensor:
        sizes.append(logits.numel())
        return plain(logits, *rest, **other)

    monkeypatch.setattr(nn.functional, "cross_entropy", watched)
    log_probabilities(
        torch.randn(2, 40, 16).bfloat16(), torch.zeros(2, 40, dtype=torch.long), slice_elements=100
    )
    assert max(sizes) <= 100
    assert sum(sizes) == 2 * 40 * 16


def test_low_precision_logits_are_normalised_in_float32() -> None:
    """Guards against a softmax in bfloat16, whose sums are wrong in the third digit."""
    logits = torch.randn(1, 5, 320).bfloat16()
    exact = logits.double().log_softmax(-1)[:, :, 7]
    got = log_probabilities(logits, torch.full((1, 5), 7))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_broken_logits_are_refused(value: float) -> None:
    """Guards against a broken model that is scored as a bad one."""
    logits = torch.randn(1, 4, 6)
    logits[0, 2, 3] = value
    with pytest.raises(ValueError, match="^model: expected a finite log-probability .* got 1 of 4"):
        log_probabilities(logits, torch.full((1, 4), 3))


def test_ignored_targets_may_have_broken_logits() -> None:
    """Guards against refusing a model for tokens that nobody counts."""
    logits = torch.full((1, 2, 6), torch.nan)
    assert log_probabilities(logits, torch.full((1, 2), -100)).tolist() == [[0, 0]]


def test_each_module_trains_afterwards_as_before() -> None:
    """Guards against dropout that stays off for the rest of a run, and against waking frozen modules."""
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[1].eval()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(module.training for module in model.modules())
        assert torch.is_inference_mode_enabled()
        raise RuntimeError
    assert [module.training for module in model.modules()] == [True, True, False]


def test_dropout_is_off_while_measuring() -> None:
    """Guards against held-out losses with dropout, which are too high and differ from call to call."""
    model = tiny_llama(dropout=0.9).train()
    tokens = torch.randint(256, (1, 20))
    with evaluating(model):
        assert torch.equal(logits_of(model, tokens), logits_of(model, tokens))


def test_answer_of_another_shape_is_refused() -> None:
    """Guards against a classifier, or a model that keeps only the last logits, scored as a language model."""

    class LastOnly(Fake):
        def logits(self, input_ids: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(input_ids), 1, 320)

    with pytest.raises(ValueError, match=r"^model: expected logits \[2, 9, V\], got \[2, 1, 320\]"):
        logits_of(LastOnly(), torch.zeros(2, 9, dtype=torch.long))


def test_importing_the_room_does_not_import_transformers() -> None:
    """Guards against a command line that takes seconds to print its help."""
    rooms = "answers, forward, needle, position, probe, unigram"
    code = f"import sys; from trisparse.eval import {rooms}; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
