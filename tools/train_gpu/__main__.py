"""Train two byte-level models on a GPU, with NSA and full attention, for equal tokens in the time there is.

    PYTHONPATH=src python tools/train_gpu --minutes 9           # benchmarks/results/gpu/training.csv and .png
    PYTHONPATH=src python tools/train_gpu --rehearse            # tiny, on the CPU: shows only that it runs

A short run of each shows how long a step takes; the steps of both are those for which the time is enough. One
that takes longer all the same is stopped at the end of the time, and its rows end there. The tables are
written anew.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "lent_gpu"))

from deadline import Deadline
from origin import describe_device, facts
from plan import Plan
from runs import train_both
from say import say

from trisparse.backends import choose

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "gpu"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="train_gpu", description=(__doc__ or ""), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole command")
    parser.add_argument("--context", type=int, help="tokens of a window; 16384")
    parser.add_argument("--batch", type=int, help="windows of a step; 2")
    parser.add_argument("--preset", help="size of the models; base")
    parser.add_argument("--data", default="stdlib", help="a folder of text instead of Python's own source")
    parser.add_argument("--output", type=Path, help=f"folder of the table; {RESULTS} unless rehearsing")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU, by the torch backend")
    return parser.parse_args(arguments)


def _plan(chosen: argparse.Namespace) -> Plan:
    if chosen.rehearse:
        return Plan.rehearsal(chosen.data)
    given = {"context_length": chosen.context, "batch_size": chosen.batch, "preset": chosen.preset}
    return Plan(data=chosen.data, **{name: value for name, value in given.items() if value is not None})


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _parse(arguments)
    deadline = Deadline(60 * chosen.minutes)
    device = "cpu" if chosen.rehearse else "cuda"
    try:
        choose("torch" if chosen.rehearse else "triton", device)
    except NotImplementedError as error:
        say(f"train_gpu: {error}; --rehearse runs without a GPU")
        return 2
    # the checkpoints are several GB, and nobody goes on from them
    with tempfile.TemporaryDirectory() as scratch:
        results = chosen.output or (Path(tempfile.mkdtemp()) if chosen.rehearse else RESULTS)
        known = facts(device)
        say(describe_device(results, known))
        table = results / "training.csv"
        if not train_both(_plan(chosen), Path(scratch), deadline, known, table):
            return 1
    say(f"table and figure in {results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
