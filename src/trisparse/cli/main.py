"""`trisparse`: collects the verbs and turns mistakes into one line and an exit code.

Exit codes: 0 done, 1 failed or interrupted, 2 wrong arguments or input.
"""

import os
import sys
from typing import NoReturn

import typer

from trisparse.cli import bench, build, chat, demo, env, evaluate, generate, plot, train
from trisparse.train.interrupt import TrainingInterrupted

app = typer.Typer(
    help="Native Sparse Attention: train, run and measure long-context language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("eval")(evaluate.evaluate)
app.add_typer(bench.app, name="bench")
app.command("plot")(plot.plot)
app.command("build")(build.build)
app.command("env")(env.env)

# what this package's checks raise for wrong input; anything else is a fault of ours and keeps its traceback
_MISTAKES = (ValueError, TypeError, NotImplementedError, OSError)

# what a shell says of a process that SIGINT has ended
_INTERRUPTED_IN_TYPER = 130


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _end_interrupted() -> NoReturn:
    # the terminal has written ^C into the line
    sys.stderr.write("\ninterrupted\n")
    sys.exit(1)


def run() -> None:
    """Entry point of the `trisparse` command. TRISPARSE_DEBUG=1 shows tracebacks of mistakes too."""
    try:
        app()
    except _MISTAKES as error:
        if os.environ.get("TRISPARSE_DEBUG") == "1":
            raise
        sys.stderr.write(f"error: {_one_line(error)}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        _end_interrupted()
    except SystemExit as stop:
        # typer has caught Ctrl-C, and says nothing
        if stop.code == _INTERRUPTED_IN_TYPER:
            _end_interrupted()
        raise
    except TrainingInterrupted as error:
        sys.stderr.write(f"{_one_line(error)}\n")
        sys.exit(1)
