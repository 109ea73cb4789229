"""`trisparse build`"""

from typing import Annotated

import typer

from trisparse.cli.output import say


def build(
    force: Annotated[bool, typer.Option("--force", help="Build even what the cache has.")] = False,
) -> None:
    """Build the native CPU kernels now, not in the first call that needs them."""
    from trisparse.cpu.build import SOURCES
    from trisparse.cpu.cache import cache_folder
    from trisparse.cpu.errors import BuildError
    from trisparse.cpu.library import open_cached

    try:
        found = open_cached(SOURCES, cache_folder(), force=force)
    except BuildError as error:
        say(f"error: {error}")
        raise typer.Exit(1) from None
    made = found.build
    typer.echo(f"compiler: {made.compiler}")
    typer.echo(f"instruction sets: {', '.join(found.instruction_sets)}")
    for name, reason in made.left_out.items():
        typer.echo(f"left out: {name}: {reason}")
    typer.echo(f"library: {made.path}")
    typer.echo(f"seconds: {made.seconds}{'' if made.fresh else ' (an earlier build)'}")
