"""`trisparse bench decode`"""

from pathlib import Path
from typing import Annotated

import typer

from trisparse.cli.arguments import device_named, dtype_named, numbers
from trisparse.cli.output import print_rows


def decode(
    lengths: Annotated[
        str, typer.Option(help="Context lengths, tokens, separated by commas.")
    ] = "4096,8192,16384,32768,65536",
    batch: Annotated[str, typer.Option(help="Rows of a batch; several sizes separated by commas.")] = "1",
    backends: Annotated[
        str, typer.Option(help="Backends beside full attention, separated by commas.")
    ] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each row that attend at once.")] = 1,
    ragged: Annotated[bool, typer.Option("--ragged", help="Also rows of different length.")] = False,
    heads: Annotated[int, typer.Option(min=1)] = 64,
    groups: Annotated[int, typer.Option(min=1, help="Key/value groups; divides heads.")] = 4,
    head_dim: Annotated[int, typer.Option(min=1)] = 128,
    value_dim: Annotated[int, typer.Option(min=1)] = 128,
    samples: Annotated[int, typer.Option(min=1, help="Timings of each case.")] = 30,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each case.")] = 20.0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="Also append the rows to this CSV file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Time one decode step against a cache: NSA beside full attention, PyTorch's and ours, in turns.

    On a GPU, make bench-gpu in a checkout goes further: FlashAttention, CUDA graphs, a cold L2 cache.
    """
    from trisparse.bench.decode import run
    from trisparse.cli.growing_table import row_keeper
    from trisparse.report.decode import COLUMNS

    rows = run(
        numbers("lengths", lengths),
        batches=numbers("batch", batch),
        heads=heads,
        groups=groups,
        head_dim=head_dim,
        value_dim=value_dim,
        dtype=dtype_named(dtype),
        new_tokens=new_tokens,
        ragged=ragged,
        backends=backends.split(","),
        samples=samples,
        seconds_per_case=seconds,
        device=device_named(device),
        on_row=row_keeper(
            output, COLUMNS, lambda row: f"{row['case']} {row['backend']}: {row['median_ms'] or 'failed'}"
        ),
    )
    shown = ("backend", "form", "direction", "batch", "tokens", "median_ms", "gigabytes_per_second", "gate")
    print_rows(rows if as_json else [{name: row[name] for name in shown} for row in rows], as_json)
