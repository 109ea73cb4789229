"""The log of a run: one JSON line per training step and per evaluation, the same after every resume."""

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from trisparse.files import write_whole

LOG = "log.jsonl"
# seconds differ from run to run, so they stay out of the log, which does not
TIMING = "timing.jsonl"

Line = dict[str, Any]


def log_line(
    split: Literal["train", "heldout"],
    step: int,
    tokens: int,
    loss: float,
    learning_rate: float | None = None,
    grad_norm: float | None = None,
) -> Line:
    """What is known after `step`: the mean loss in nats per predicted token, and in bits.

    A token is a byte, but the mark at the end of a document, which is predicted too, counts as one more.
    `learning_rate` and `grad_norm` (before clipping) are those of the step, and None for held-out text.
    """
    return {
        "split": split,
        "step": step,
        "tokens": tokens,
        "loss": loss,
        "bits_per_byte": loss / math.log(2),
        "learning_rate": learning_rate,
        "grad_norm": grad_norm,
    }


class LineFile:
    """A file of JSON lines, open to add to; each line is handed to the system as soon as it is added."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def add(self, line: Line) -> None:
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until the lines are on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "LineFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sync()
        self._file.close()


def read_log(path: Path) -> list[Line]:
    """The lines of a log. A last line without its end, which a killed run leaves, is not one.

    Raises:
        ValueError: the file is missing, or a line in it is not what this module writes.
    """
    return [_parsed(path, number, line) for number, line in enumerate(_ended_lines(path), start=1)]


def whole_lines(path: Path) -> list[tuple[bytes, Line]]:
    """The lines of a log, and what they mean, up to the first broken one; none of a missing file.

    A power cut may leave anything behind what was synced last.

    Raises:
        ValueError: the file cannot be read.
    """
    found = []
    for line in _ended_lines(path) if path.exists() else []:
        value = _meaning(line)
        if value is None:
            break
        found.append((line, value))
    return found


def truncate_log(path: Path, step: int) -> None:
    """Remove the lines after `step`, and those from a broken one on. A missing file stays missing."""
    if path.exists():
        # the bytes are kept, not written anew from what they mean
        kept = [line + b"\n" for line, value in whole_lines(path) if value["step"] <= step]
        write_whole(path, b"".join(kept))


def loss_rows(output: str | Path, run: str, attention: str) -> list[dict[str, str]]:
    """The log of the run in `output` as rows for the loss figure.

    Columns: run, attention, split (train or heldout), step, tokens, bits_per_byte.

    Raises:
        ValueError: there is no log, or a line in it is broken.
    """
    columns = ("split", "step", "tokens", "bits_per_byte")
    return [
        {"run": run, "attention": attention, **{column: str(line[column]) for column in columns}}
        for line in read_log(Path(output) / LOG)
    ]


def _ended_lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise ValueError(f"log: cannot read {str(path)!r}: {error.strerror}") from error


def _meaning(line: bytes) -> Line | None:
    """None if the line is not what this module writes."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("step"), int) else None


def _parsed(path: Path, number: int, line: bytes) -> Line:
    value = _meaning(line)
    if value is None:
        raise ValueError(
            f"log: expected a JSON object with a step in line {number} of {str(path)!r}, got none"
        )
    return value
