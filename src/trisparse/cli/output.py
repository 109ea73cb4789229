"""What verbs print: JSON lines for machines, a table for people."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def say(text: str) -> None:
    """A line of progress, on stderr: stdout belongs to results."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Rows with the same keys as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)


def print_rows(rows: Sequence[Mapping[str, str]], as_json: bool) -> None:
    """Rows as the caller asked for them."""
    if as_json:
        print_json(list(rows))
    else:
        print_table(rows)
