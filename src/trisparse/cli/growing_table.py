"""A table on disk that gets each row when it is measured: an interruption costs the row being measured."""

from collections.abc import Callable, Sequence
from pathlib import Path


def row_keeper(
    output: Path | None, columns: Sequence[str], describe: Callable[[dict[str, str]], str]
) -> Callable[[dict[str, str]], None]:
    """What to do with each row: say `describe(row)`, and append it to the table at `output`, if there is one.

    Raises:
        ValueError: what lies at `output` is another table; before anything is measured.
    """
    from trisparse.bench.table import append_rows
    from trisparse.cli.output import say

    if output is not None and output.is_file():
        append_rows(output, [], columns)

    def keep(row: dict[str, str]) -> None:
        say(describe(row))
        if output is not None:
            append_rows(output, [row], columns)

    return keep
