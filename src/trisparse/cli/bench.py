"""`trisparse bench`"""

from pathlib import Path
from typing import Annotated

import typer

from trisparse.cli import bench_decode, bench_generate
from trisparse.cli.arguments import device_named, dtype_named, numbers
from trisparse.cli.output import print_rows

app = typer.Typer(no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure speed; attention and decode steps that miss their correctness check get no time."""


app.command("decode")(bench_decode.decode)
app.command("generate")(bench_generate.generate)


@app.command("attention")
def attention(
    lengths: Annotated[
        str, typer.Option(help="Context lengths, tokens, separated by commas.")
    ] = "1024,4096,16384",
    backends: Annotated[
        str, typer.Option(help="Backends beside full attention, separated by commas.")
    ] = "auto",
    directions: Annotated[
        str, typer.Option(help="Some of forward, backward, forward+backward, separated by commas.")
    ] = "forward,backward",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    heads: Annotated[int, typer.Option(min=1)] = 16,
    groups: Annotated[int, typer.Option(min=1, help="Key/value groups; divides heads.")] = 1,
    head_dim: Annotated[int, typer.Option(min=1)] = 128,
    value_dim: Annotated[int, typer.Option(min=1)] = 128,
    baseline_limit: Annotated[
        int | None, typer.Option(min=0, help="Leave full attention out of longer cases.")
    ] = None,
    parts: Annotated[bool, typer.Option("--parts", help="Also time each branch alone.")] = False,
    samples: Annotated[int, typer.Option(min=1, help="Timings of each case.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each case.")] = 30.0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="Also append the rows to this CSV file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Time attention against PyTorch's full attention, in turns and in one run."""
    from trisparse.bench.attention import run
    from trisparse.cli.growing_table import row_keeper
    from trisparse.report.measurement import ATTENTION_COLUMNS

    rows = run(
        numbers("lengths", lengths),
        heads=heads,
        groups=groups,
        head_dim=head_dim,
        value_dim=value_dim,
        dtype=dtype_named(dtype),
        backends=backends.split(","),
        parts=parts,
        directions=directions.split(","),
        baseline_limit=baseline_limit,
        samples=samples,
        seconds_per_case=seconds,
        device=device_named(device),
        on_row=row_keeper(
            output,
            ATTENTION_COLUMNS,
            lambda row: f"{row['case']} {row['direction']} {row['backend']}: {row['median_ms'] or 'failed'}",
        ),
    )
    shown = ("backend", "direction", "tokens", "median_ms", "minimum_ms", "maximum_ms", "samples", "gate")
    print_rows(rows if as_json else [{name: row[name] for name in shown} for row in rows], as_json)
