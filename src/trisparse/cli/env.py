"""`trisparse env`"""

from typing import Annotated

import typer

from trisparse.cli.output import print_json

PACKAGES = ("torch", "triton", "transformers", "accelerate", "safetensors", "numpy", "matplotlib")


def env(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Print what to paste into a bug report: versions, machine, and the backends that can run here."""
    facts = _facts()
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        if isinstance(value, dict):
            typer.echo(f"{key}:")
            for name, text in value.items():
                typer.echo(f"  {name}: {text}")
        else:
            typer.echo(f"{key}: {value}")


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _facts() -> dict:
    import platform

    from trisparse import __version__, available_backends
    from trisparse.bench.table import environment

    here = environment()
    # first: kernels for all instruction sets, once built, are those that the backend is asked for
    kernels = _cpu_kernels()
    backends = {name: reason or "usable" for name, reason in available_backends().items()}
    return {
        "trisparse": __version__,
        "commit": here["commit"],
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": here["device"],
        "cpu_flags": here["cpu_flags"] or "none of interest",
        "threads": here["threads"],
        "packages": {package: _version(package) for package in PACKAGES},
        "backends": backends,
        "cpu_kernels": kernels,
    }


def _cpu_kernels() -> dict[str, str]:
    """Where the native kernels are, or why there are none; builds them if nobody has yet."""
    from trisparse.cpu.compiler import find_compiler
    from trisparse.cpu.errors import BuildError
    from trisparse.cpu.library import library

    try:
        found = library()
    except BuildError as error:
        try:
            compiler = str(find_compiler())
        except BuildError as missing:
            compiler = f"none: {missing}"
        return {"library": f"none: {error}", "compiler": compiler}
    sets = f"{', '.join(found.instruction_sets)} (in use: {found.instructions})"
    left_out = {f"without {name}": reason for name, reason in found.build.left_out.items()}
    path = f"built for this process alone: {found.uncached}" if found.uncached else str(found.build.path)
    return {"library": path, "compiler": found.build.compiler, "instruction_sets": sets} | left_out
