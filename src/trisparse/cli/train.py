"""`trisparse train`"""

from pathlib import Path
from typing import Annotated

import typer

from trisparse.cli.output import print_json, say


def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="A recipe.yaml, then key=value words such as steps=500."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest complete checkpoint.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a language model by a recipe. `output=FOLDER` is the one key without a default.

    Examples: `trisparse train output=runs/a data=texts`, `trisparse train recipe.yaml steps=500`,
    `trisparse train runs/a/recipe.yaml --resume`.
    """
    from trisparse.train.progress import show_progress
    from trisparse.train.recipe import load_recipe
    from trisparse.train.trainer import train as run

    words = list(arguments or [])
    path = Path(words.pop(0)) if words and "=" not in words[0] else None
    recipe = load_recipe(path, words)
    with show_progress() as on_progress:
        result = run(recipe, resume=resume, on_progress=on_progress)
    if as_json:
        print_json({"bits_per_byte": result.bits_per_byte, "model": str(result.model)})
    else:
        say(f"held-out bits per byte {result.bits_per_byte:.4f}; model in {result.model}")
