"""A model's forward as every measurement runs it: nothing trained, nothing left changed, memory bounded."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trisparse.data.packing import IGNORED_LABEL

# float32 copies of logits are made 16 MiB at a time, whatever the context and the vocabulary
SLICE_ELEMENTS = 2**22


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients and no dropout inside; afterwards each module trains, or does not, as it did before."""
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        # one by one, because `model.train()` would wake modules that were frozen on purpose
        for module in trained:
            module.training = True


def device_of(model: nn.Module) -> torch.device:
    """Where the model's inputs belong: the device of its first parameter, the CPU if it has none."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def logits_of(model: nn.Module, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
    """The logits `[B, N, V]` of a causal language model for tokens `[B, N]`, on its own device.

    `position_ids` goes to the model only if it is given: it is what tells documents in a window apart.

    Raises:
        ValueError: the model answers with another shape than one row of logits for each token.
    """
    device = device_of(model)
    inputs = {"input_ids": input_ids.to(device)}
    if position_ids is not None:
        inputs["position_ids"] = position_ids.to(device)
    logits: Tensor = model(**inputs, use_cache=False).logits
    if logits.dim() != 3 or logits.shape[:2] != input_ids.shape:
        raise ValueError(
            f"model: expected logits [{input_ids.shape[0]}, {input_ids.shape[1]}, V], "
            f"got {list(logits.shape)}; give a causal language model"
        )
    return logits


def log_probabilities(logits: Tensor, targets: Tensor, *, slice_elements: int = SLICE_ELEMENTS) -> Tensor:
    """The log-probability of each target in nats, float32 `[B, N]`; 0 where the target is `IGNORED_LABEL`.

    Args:
        logits: `[B, N, V]` of any floating dtype; row `n` is the model's opinion on `targets[:, n]`.
        targets: int64 `[B, N]` on the same device.
        slice_elements: how many logits, about, are in float32 at a time; the result does not depend on it.

    Raises:
        ValueError: a target's log-probability is NaN or infinite. A score made from it would look like a bad
            model where there is a broken one.
    """
    batch, rows, vocabulary = logits.shape
    step = max(1, slice_elements // max(1, batch * vocabulary))
    result = torch.zeros(batch, rows, dtype=torch.float32, device=logits.device)
    for start in range(0, rows, step):
        part, labels = logits[:, start : start + step], targets[:, start : start + step]
        losses = nn.functional.cross_entropy(
            part.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
        )
        result[:, start : start + step] = -losses.view(batch, -1)
    if not result.isfinite().all():
        bad = int((~result.isfinite()).sum())
        raise ValueError(
            f"model: expected a finite log-probability of every target, got {bad} of {result.numel()} "
            "NaN or infinite; the training diverged or the attention is at fault"
        )
    return result
