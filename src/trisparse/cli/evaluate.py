"""`trisparse eval`"""

from pathlib import Path
from typing import Annotated, Any

import typer

from trisparse.cli.arguments import Device, WeightDtype, placement
from trisparse.cli.output import print_rows, say


def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model or of a training run.")],
    task: Annotated[
        str, typer.Option(help="position: loss by context position; needle: needle in a haystack.")
    ] = ("position"),
    data: Annotated[str, typer.Option(help="'stdlib' or a folder of text.")] = "stdlib",
    context_length: Annotated[int, typer.Option(min=128, help="Longest context, tokens.")] = 1024,
    windows: Annotated[
        int, typer.Option(min=1, help="Held-out windows at most, spread evenly (position).")
    ] = 64,
    samples: Annotated[int, typer.Option(min=1, help="Needles in each cell (needle).")] = 10,
    scoring: Annotated[str, typer.Option(help="rank or exact (needle).")] = "rank",
    device: Device = "auto",
    dtype: WeightDtype = None,
    output: Annotated[Path | None, typer.Option(help="Also write the rows to this CSV file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Measure a trained model on held-out text."""
    from trisparse.data.corpus import folder_corpus, standard_library_corpus
    from trisparse.models.load import load_model
    from trisparse.report.rows import write_rows

    if task not in ("position", "needle"):
        raise ValueError(f"task: expected position or needle, got {task!r}")
    language_model, _ = load_model(model, **placement(device, dtype))
    corpus = standard_library_corpus() if data == "stdlib" else folder_corpus(data)
    say(corpus.describe())
    stream = corpus.stream("heldout")
    attention = "+".join(dict.fromkeys(language_model.config.attention_of_layers()))
    if task == "position":
        rows = _positions(language_model, stream, attention, context_length, windows)
    else:
        rows = _needles(language_model, stream, attention, context_length, samples, scoring)
    if output is not None:
        write_rows(output, rows)
    print_rows(rows, as_json)


def _positions(
    model: Any, stream: Any, attention: str, context_length: int, windows: int
) -> list[dict[str, str]]:
    from trisparse.data.packing import PackedWindows, spread
    from trisparse.eval.position import bits_by_position

    packed = PackedWindows(stream, context_length, documents=False)
    chosen: Any = spread(packed, windows)
    return bits_by_position(model, chosen, attention=attention)


def _needles(
    model: Any, stream: Any, attention: str, context_length: int, samples: int, scoring: Any
) -> list[dict[str, str]]:
    from trisparse.eval.needle import needle_rows

    lengths = sorted({max(128, context_length // part) for part in (8, 4, 2, 1)})
    depths = [0.0, 25.0, 50.0, 75.0, 100.0]
    return needle_rows(
        model,
        stream,
        attention=attention,
        lengths=lengths,
        depths=depths,
        samples=samples,
        seed=0,
        scoring=scoring,
        share_prompt=True,
    )
