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
    }
