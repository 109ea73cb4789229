"""`trisparse bench`"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trisparse.cli.output import print_rows, say

if TYPE_CHECKING:
    import torch

app = typer.Typer(help="Measure speed; what misses its correctness check gets no time.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure speed; what misses its correctness check gets no time."""


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
    samples: Annotated[int, typer.Option(min=1, help="Timings of each case.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each case.")] = 30.0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="Also append the rows to this CSV file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Time attention against PyTorch's full attention, in turns and in one run."""
    from trisparse.bench.attention import run
    from trisparse.bench.table import append_rows

    rows = run(
        _numbers("lengths", lengths),
        heads=heads,
        groups=groups,
        head_dim=head_dim,
        value_dim=value_dim,
        dtype=_dtype(dtype),
        backends=backends.split(","),
        directions=directions.split(","),
        samples=samples,
        seconds_per_case=seconds,
        device=device,
        on_row=lambda row: say(
            f"{row['case']} {row['direction']} {row['backend']}: {row['median_ms'] or 'failed'}"
        ),
    )
    if output is not None:
        append_rows(output, rows)
    _show(rows, ("backend", "direction", "tokens", *_TIMES), as_json)


@app.command("decode")
def decode(
    lengths: Annotated[
        str, typer.Option(help="Context lengths, tokens, separated by commas.")
    ] = "4096,8192,16384,32768",
    batch: Annotated[str, typer.Option(help="Rows in a step, numbers separated by commas.")] = "1",
    new_tokens: Annotated[int, typer.Option(min=1, help="New tokens of each row.")] = 1,
    backend: Annotated[str, typer.Option(help="Backend beside full attention.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    heads: Annotated[int, typer.Option(min=1)] = 64,
    groups: Annotated[int, typer.Option(min=1, help="Key/value groups; divides heads.")] = 4,
    head_dim: Annotated[int, typer.Option(min=1)] = 128,
    value_dim: Annotated[int, typer.Option(min=1)] = 128,
    samples: Annotated[int, typer.Option(min=1, help="Timings of each case.")] = 25,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each case.")] = 20.0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="Also append the rows to this CSV file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Time one decode step over a long cache against full attention, with the bytes that each reads."""
    from trisparse.bench.decode import DECODE_COLUMNS, run
    from trisparse.bench.table import append_rows

    rows = run(
        _numbers("lengths", lengths),
        batches=_numbers("batch", batch),
        heads=heads,
        groups=groups,
        head_dim=head_dim,
        value_dim=value_dim,
        new_tokens=new_tokens,
        dtype=_dtype(dtype),
        backend=backend,
        samples=samples,
        seconds_per_case=seconds,
        device=device,
        on_row=lambda row: say(f"{row['case']} {row['backend']}: {row['median_ms'] or 'failed'}"),
    )
    if output is not None:
        append_rows(output, rows, DECODE_COLUMNS)
    _show(rows, ("backend", "form", "batch", "tokens", *_TIMES, "gigabytes_per_second"), as_json)


_TIMES = ("median_ms", "minimum_ms", "maximum_ms", "samples", "gate")


def _show(rows: list[dict[str, str]], columns: tuple[str, ...], as_json: bool) -> None:
    print_rows(rows if as_json else [{name: row[name] for name in columns} for row in rows], as_json)


def _dtype(name: str) -> "torch.dtype":
    import torch

    if name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype: expected float32, bfloat16 or float16, got {name!r}")
    return getattr(torch, name)


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{name}: expected whole numbers separated by commas, got {text!r}") from None
