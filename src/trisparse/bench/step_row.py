"""One row of the table of decode steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from trisparse.bench.bandwidth import Bandwidth
from trisparse.bench.decode_case import DecodeCase
from trisparse.bench.gate import Verdict
from trisparse.bench.row import finished_row
from trisparse.bench.step_contender import StepContender
from trisparse.bench.table import environment
from trisparse.report.decode import COLUMNS


@dataclass(frozen=True, kw_only=True)
class TimedStep:
    """A contender's step that was judged and, if it passed, timed.

    Attributes:
        form: how the call was made.
        ids: the blocks that the step read, or None if it chooses nothing.
        seconds: of each sample; empty where the verdict is red.
        caches: over how many the steps rotated.
    """

    contender: StepContender
    case: DecodeCase
    form: str
    ids: Tensor | None
    verdict: Verdict
    seconds: Sequence[float]
    caches: int

    def row(self, device: torch.device, bandwidth: Bandwidth) -> dict[str, str]:
        """The columns of `report.decode.COLUMNS`."""
        each, case, passed = self.contender, self.case, self.verdict.passed
        # ids of a red gate may be anything
        read = each.bytes_read(case, self.ids) if passed else 0
        tokens = [each.tokens_read(length, case) for length in case.lengths]
        known = {
            "case": case.name,
            "backend": each.name,
            "direction": case.direction,
            "instructions": each.instructions(case.dtype),
            **case.setting(),
            **environment(device),
            "form": self.form,
            "new_tokens": str(case.new_tokens),
            "caches": str(self.caches),
            "tokens_read": f"{sum(tokens) / len(tokens):.0f}",
            "megabytes_read": f"{1e-6 * read:.3f}" if passed else "",
            "gigabytes_per_second": f"{1e-9 * read / median(self.seconds):.2f}" if passed else "",
            "copy_gigabytes_per_second": f"{bandwidth.copy:.2f}",
            "read_gigabytes_per_second": f"{bandwidth.read:.2f}",
        }
        return finished_row(known, self.verdict, self.seconds, COLUMNS)
