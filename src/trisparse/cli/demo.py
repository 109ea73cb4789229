"""`trisparse demo`"""

from pathlib import Path
from typing import Annotated

import typer

from trisparse.cli.output import print_table, say


def demo(
    output: Annotated[Path, typer.Option(help="Folder for models, tables and the report.")] = Path(
        "runs/demo"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each model.")] = 360,
    quick: Annotated[
        bool, typer.Option(help="Seconds instead of minutes: checks that all parts work.")
    ] = False,
) -> None:
    """Train NSA and full attention on Python's own source, measure both, write a report. About ten minutes.

    Ctrl-C stops it at any time; the same command goes on from there.
    """
    from trisparse.demo.page import summary
    from trisparse.demo.plan import DemoPlan
    from trisparse.demo.run import run_demo

    plan = DemoPlan(output=output, steps=steps)
    if quick:
        plan = DemoPlan(
            output=output,
            steps=4,
            batch_size=2,
            context_length=256,
            bench_lengths=(256, 512),
            bench_backward_lengths=(256,),
            needle_lengths=(128, 256),
            needle_depths=(0.0, 100.0),
            needle_samples=2,
            position_windows=4,
        )
    path = run_demo(plan, say)
    print_table(summary(output))
    say(f"report: {path.resolve()}")
