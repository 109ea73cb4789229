"""Print what each Triton kernel must compute and move for one shape, and the least time that takes.

python tools/kernel_floors.py --tokens 65536 --heads 64 --groups 4 --head-dim 192 --value-dim 128
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from trisparse.triton.cost import GPUS, Cost, Gpu, Shape, backward_costs, floor, forward_costs
from trisparse.triton.decode_cost import decode_costs, dense_decode_cost

_FORM = "{:26} {:>9} {:>9} {:>9} {:>9} {:>10} {}\n"


class Scale(NamedTuple):
    """Units in which the numbers of some kernels are readable."""

    flops: float
    exponentials: float
    moved: float
    seconds: float
    header: tuple[str, ...]


_CALL = Scale(1e12, 1e9, 1e9, 1e-3, ("TFLOP", "G exp", "HBM GB", "L2 GB", "floor ms"))
_STEP = Scale(1e9, 1e6, 1e6, 1e-6, ("GFLOP", "M exp", "HBM MB", "L2 MB", "floor us"))


def _lines(shape: Shape, gpu: Gpu) -> Iterator[str]:
    yield f"{gpu.name}: {gpu.source}\n"
    for title, scale, costs in (
        ("forward", _CALL, forward_costs(shape)),
        ("backward", _CALL, backward_costs(shape)),
        ("decode step", _STEP, decode_costs(shape)),
    ):
        yield _FORM.format(title, *scale.header, "bound by")
        total = 0.0
        for cost in costs:
            total += floor(cost, gpu).seconds
            yield _line(cost, gpu, scale)
        yield _FORM.format(f"{title} in all", "", "", "", "", f"{total / scale.seconds:.3f}", "")
    yield _line(dense_decode_cost(shape), gpu, _STEP)


def _line(cost: Cost, gpu: Gpu, scale: Scale) -> str:
    least = floor(cost, gpu)
    numbers = (
        cost.flops / scale.flops,
        cost.exponentials / scale.exponentials,
        cost.hbm_bytes / scale.moved,
        cost.l2_bytes / scale.moved,
        least.seconds / scale.seconds,
    )
    return _FORM.format(cost.kernel, *(f"{number:.3f}" for number in numbers), least.bound)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", choices=GPUS, default="H100")
    for name, default in (
        ("tokens", 65536),
        ("batch", 1),
        ("heads", 64),
        ("groups", 4),
        ("head-dim", 128),
        ("value-dim", 128),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    sizes = vars(parser.parse_args(arguments))
    gpu = GPUS[sizes.pop("gpu")]
    sys.stdout.writelines(_lines(Shape(**sizes), gpu))


if __name__ == "__main__":
    main()
