"""`trisparse plot`"""

from pathlib import Path
from typing import Annotated

import typer

from trisparse.cli.output import say

FIGURES = ("latency", "speedup", "decode", "loss", "position", "needle", "selection", "gates")


def plot(
    figure: Annotated[str, typer.Argument(help=f"One of {', '.join(FIGURES)}.")],
    rows: Annotated[Path, typer.Argument(help="The CSV file to draw.")],
    output: Annotated[Path, typer.Argument(help="The .png or .svg file to write.")],
) -> None:
    """Draw a figure from a CSV file, and say what it shows."""
    import importlib

    from trisparse.report.rows import read_rows
    from trisparse.report.save import save_figure

    if figure not in FIGURES:
        raise ValueError(f"figure: expected one of {', '.join(FIGURES)}; got {figure!r}")
    module = importlib.import_module(f"trisparse.report.{figure}")
    table = read_rows(rows)
    save_figure(module.draw(table), output)
    say(module.explain(table))
