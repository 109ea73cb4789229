"""`trisparse bench generate`"""

from pathlib import Path
from typing import Annotated

import typer

from trisparse.cli.arguments import device_named, dtype_named, numbers
from trisparse.cli.output import print_rows


def generate(
    lengths: Annotated[
        str, typer.Option(help="Context lengths, tokens, separated by commas.")
    ] = "1024,4096,16384",
    preset: Annotated[str, typer.Option(help="Size of the model; its weights are random.")] = "base",
    attentions: Annotated[str, typer.Option(help="Kinds of attention, separated by commas.")] = "nsa,full",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    prefill_limit: Annotated[
        int, typer.Option(min=0, help="Fill caches of more tokens at random; measure decode alone.")
    ] = 16384,
    chunk: Annotated[int, typer.Option(min=1, help="Tokens of the prompt read at once.")] = 2048,
    steps: Annotated[int, typer.Option(min=1, max=64, help="Tokens decoded at each length.")] = 24,
    batch: Annotated[int, typer.Option(min=1, help="Sequences side by side, all of one length.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="Also append the rows to this CSV file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Time a whole model with random weights: prompt tokens/s and ms for each new token, NSA and full."""
    from trisparse.bench.generate import COLUMNS, run
    from trisparse.cli.growing_table import row_keeper

    rows = run(
        numbers("lengths", lengths),
        preset=preset,
        attentions=attentions.split(","),
        dtype=dtype_named(dtype),
        prefill_limit=prefill_limit,
        chunk=chunk,
        steps=steps,
        batch=batch,
        device=device_named(device),
        on_row=row_keeper(
            output,
            COLUMNS,
            lambda row: f"{row['attention']} at {row['tokens']} tokens: {row['decode_ms']} ms a token",
        ),
    )
    shown = ("attention", "tokens", "filled", "prefill_tokens_per_second", "decode_ms", "cache_megabytes")
    print_rows(rows if as_json else [{name: row[name] for name in shown} for row in rows], as_json)
