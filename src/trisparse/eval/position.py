"""Held-out bits per byte, in the mean and by how much context a byte is predicted from."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from trisparse.data.packing import IGNORED_LABEL
from trisparse.eval.forward import evaluating, log_probabilities, logits_of

COLUMNS = ["attention", "position_start", "position_end", "bits_per_byte", "bytes"]
FIRST_EDGE = 64

Windows = Dataset[dict[str, Tensor]] | Tensor


def bits_per_byte(model: nn.Module, windows: Windows, *, batch_size: int = 8) -> float:
    """The mean loss over every predicted token of the windows, in bits; for byte tokens, bits per byte.

    The end of a document is a token like a byte. `windows` and errors as in `bits_by_position`.
    """
    bits, counts = _totals(model, windows, batch_size)
    return float(bits.sum() / counts.sum())


def bits_by_position(
    model: nn.Module,
    windows: Windows,
    *,
    attention: str,
    edges: Sequence[int] | None = None,
    batch_size: int = 8,
) -> list[dict[str, str]]:
    """Mean loss in bits of the tokens at each stretch of positions, one row of `COLUMNS` per stretch.

    A token at position `p` is predicted from the `p` tokens before it; position 0 is never predicted. A
    stretch in which nothing was predicted has no row.

    Args:
        model: a transformers causal language model, or a module that is called like one.
        windows: token ids `[N, T]`, each row one text; or a dataset whose items are dicts with `input_ids`
            `[T]` and, if they have them, `labels` (`IGNORED_LABEL` is skipped) and `position_ids`. With
            `position_ids` a token's position is the one in its document: what the model can look back on.
        attention: the name in the rows' first column.
        edges: `[start, ..., end]`, rising; tokens outside are left out. None is `default_edges(T)`.
        batch_size: windows in one forward.

    Raises:
        ValueError: no windows, nothing to predict in them, edges that do not rise, or a loss that is not
            finite.
    """
    _check_edges(edges)
    bits, counts = _totals(model, windows, batch_size)
    bounds = default_edges(len(counts)) if edges is None else list(edges)
    rows = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        size = int(counts[start:end].sum())
        if size:
            mean = float(bits[start:end].sum()) / size
            cells = [attention, str(start), str(end), f"{mean:.6f}", str(size)]
            rows.append(dict(zip(COLUMNS, cells, strict=True)))
    return rows


def default_edges(length: int) -> list[int]:
    """0, 64, 128, 256, ... and the context's `length` as the last: each stretch doubles the context."""
    edges, edge = [0], FIRST_EDGE
    while edge < length:
        edges.append(edge)
        edge *= 2
    return [*edges, length]


def _totals(model: nn.Module, windows: Windows, batch_size: int) -> tuple[Tensor, Tensor]:
    """Summed bits, float64, and the number of predicted tokens, int64, of each position: `[T]` each."""
    bits, counts = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    for batch in _batches(windows, batch_size):
        # items are read outside: a dataset may keep them, and a tensor of inference mode cannot be trained on
        with evaluating(model):
            positions, losses, length = _losses(model, batch)
        length = max(length, len(counts))
        bits = _add(bits, torch.bincount(positions, losses, length))
        counts = _add(counts, torch.bincount(positions, minlength=length))
    if not counts.sum():
        raise ValueError(
            "windows: expected tokens to predict, got none; give labels that are not all ignored"
        )
    return bits, counts


def _add(total: Tensor, more: Tensor) -> Tensor:
    return more + nn.functional.pad(total, (0, len(more) - len(total)))


def _batches(windows: Windows, batch_size: int) -> Iterator[dict[str, Tensor]]:
    # no DataLoader: it draws from PyTorch's global generator, and a measurement would change the training
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    count = len(windows)  # type: ignore[arg-type]  # torch's map-style datasets declare no length
    if count < 1:
        raise ValueError("windows: expected at least 1, got none; give more held-out text")
    for start in range(0, count, batch_size):
        items = [_item(windows[index]) for index in range(start, min(start + batch_size, count))]
        yield {name: torch.stack([item[name] for item in items]) for name in items[0]}


def _item(window: Any) -> dict[str, Tensor]:
    return {"input_ids": window.long()} if isinstance(window, Tensor) else window


def _losses(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    """Positions and bits of the predicted tokens of one batch, `[predicted]` each on the CPU, and its T."""
    input_ids, position_ids = batch["input_ids"], batch.get("position_ids")
    length = input_ids.shape[1]
    labels = batch.get("labels", input_ids)[:, 1:]
    positions = torch.arange(length).expand_as(input_ids) if position_ids is None else position_ids
    logits = logits_of(model, input_ids, position_ids)[:, :-1]
    log_probability = log_probabilities(logits, labels.to(logits.device)).cpu()
    predicted = labels.cpu() != IGNORED_LABEL
    bits = log_probability[predicted].double() / -math.log(2)
    return positions[:, 1:].cpu()[predicted], bits, length


def _check_edges(edges: Sequence[int] | None) -> None:
    if edges is None:
        return
    rising = all(left < right for left, right in zip(edges, edges[1:], strict=False))
    if len(edges) < 2 or edges[0] < 0 or not rising:
        raise ValueError(f"edges: expected at least two rising positions from 0 on, got {list(edges)}")
