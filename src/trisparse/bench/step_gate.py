"""The check that comes before any time of a decode step."""

from trisparse.bench.decode_case import DecodeCase
from trisparse.bench.gate import Verdict, row_ratio, worst
from trisparse.bench.step import Step
from trisparse.bench.step_contender import StepContender

# rows of the batch that are compared, the first and the last among them
JUDGED_ROWS = 4


def judge_step(contender: StepContender, step: Step, case: DecodeCase, form: str) -> Verdict:
    """Compare rows of the very call that is timed with the fp64 reference on each row alone.

    The reference reads the blocks the contender chose, which are judged by their scores.
    """
    ids = contender.select(step, case)
    out = contender.prepare(step, case, form)()
    ratios = []
    for row in _spread_rows(case.batch):
        alone = step.row(row)
        chosen = contender.selection_ratio(alone, ids, case, row)
        ratios.append(chosen)
        # the reference cannot be asked about ids that break the contract
        if chosen <= 1.0:
            low = contender.expect(alone, ids, case, row)
            gold = contender.expect(alone.double(), ids, case, row)
            ratios.append(row_ratio(out[row : row + 1], low, gold))
    return Verdict(worst_ratio=worst(ratios))


def _spread_rows(batch: int) -> list[int]:
    steps = JUDGED_ROWS - 1
    return sorted({(batch - 1) * step // steps for step in range(JUDGED_ROWS)})
