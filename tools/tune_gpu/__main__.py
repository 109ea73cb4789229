"""Look for faster tiles than the pinned ones: try those a step away on the GPU at hand, write all times down.

    PYTHONPATH=src python tools/tune_gpu                        # everything, benchmarks/results/gpu/tiles.csv
    PYTHONPATH=src python tools/tune_gpu --kernels topn selected_forward --shapes 32/8x128/128
    PYTHONPATH=src python tools/tune_gpu --rehearse             # tiny, interpreted: shows only that it runs

Nothing is changed by it: the tables of tiles are source, and no launch chooses by timing. A tile is timed if
its results are those of the pinned one, within the budget. When the minutes are over, the rest is left out;
the same command then tries what the table does not have.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "lent_gpu"))

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "gpu"
# query heads / KV groups x head dim / value dim, what matters most first
SHAPES = {
    "64/4x128/128": (64, 4, 128, 128),
    "64/4x192/128": (64, 4, 192, 128),
    "32/8x128/128": (32, 8, 128, 128),
}
REHEARSED_SHAPES = {"8/1x24/16": (8, 1, 24, 16)}
REHEARSED_TILES = 3


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tune_gpu", description=(__doc__ or ""), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernels", nargs="+", help="names of kernels; all, the longest first, if left out")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="query heads/KV groups x head/value dim")
    parser.add_argument("--tiles", type=int, help="of each kernel at most; all, but 3 of a rehearsal")
    parser.add_argument("--tokens", type=int, help="65536; a rehearsal has 20")
    parser.add_argument("--samples", type=int, default=7, help="timings of each tile")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each tile")
    parser.add_argument("--processes", type=int, help="that compile; as many as there are cores for")
    parser.add_argument("--minutes", type=float, default=8.5, help="no tile begins that may end later")
    parser.add_argument("--output", type=Path, help=f"folder of the table; {RESULTS} unless rehearsing")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, in Triton's interpreter")
    chosen = parser.parse_args(arguments)
    if chosen.rehearse and chosen.shapes:
        parser.error("--shapes: a rehearsal has a shape of its own")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _parse(arguments)
    if chosen.rehearse:
        # read when the kernels are imported, which is below for that reason
        os.environ["TRITON_INTERPRET"] = "1"
        chosen.output = chosen.output or Path(tempfile.mkdtemp())
        chosen.tiles = chosen.tiles or REHEARSED_TILES
    from run import tune

    return tune(chosen, REHEARSED_SHAPES if chosen.rehearse else SHAPES, RESULTS)


if __name__ == "__main__":
    sys.exit(main())
