"""`trisparse demo`"""

from pathlib import Path
from typing import Annotated

import typer

from trisparse.cli.output import print_table, say


def demo(
    output: Annotated[
        Path | None, typer.Option(help="Folder for all results; runs/demo, or runs/demo-quick with --quick.")
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=1.0, help="Where the machine needs longer, do less of everything; roughly.")
    ] = 10.0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of each model, however long they take.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="A minute instead of ten: checks that all parts work.")] = False,
) -> None:
    """Train NSA and full attention on Python's own source, measure both, write a report.

    Ctrl-C stops it at any time; the same command goes on from there.
    """
    from dataclasses import replace

    from trisparse.demo.page import summary
    from trisparse.demo.plan import DemoPlan
    from trisparse.demo.run import run_demo

    output = output or Path("runs/demo-quick" if quick else "runs/demo")
    plan = DemoPlan.quick(output) if quick else DemoPlan(output=output, minutes=minutes)
    if steps is not None:
        plan = replace(plan, steps=steps, minutes=None)
    path = run_demo(plan, say)
    print_table(summary(output))
    say(f"report: {path.resolve()}")
