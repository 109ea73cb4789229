"""Print what each Triton kernel must compute and move for one shape, and the least time that takes.

python tools/kernel_floors.py --tokens 65536 --heads 64 --groups 4 --head-dim 192 --value-dim 128
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

from trisparse.triton.cost import GPUS, Cost, Shape, backward_costs, floor, forward_costs

_FORM = "{:26} {:>9} {:>9} {:>9} {:>9} {:>10} {}\n"


def _lines(shape: Shape, gpu_name: str) -> Iterator[str]:
    gpu = GPUS[gpu_name]
    yield f"{gpu.name}: {gpu.source}\n"
    yield _FORM.format("kernel", "TFLOP", "G exp", "HBM GB", "L2 GB", "floor ms", "bound by")
    for title, costs in (("forward", forward_costs(shape)), ("backward", backward_costs(shape))):
        total = 0.0
        for cost in costs:
            least = floor(cost, gpu)
            total += least.seconds
            yield _FORM.format(*_numbers(cost), f"{1e3 * least.seconds:.3f}", least.bound)
        yield _FORM.format(f"{title} in all", "", "", "", "", f"{1e3 * total:.3f}", "")


def _numbers(cost: Cost) -> Sequence[str]:
    scaled = (cost.flops / 1e12, cost.exponentials / 1e9, cost.hbm_bytes / 1e9, cost.l2_bytes / 1e9)
    return cost.kernel, *(f"{number:.3f}" for number in scaled)


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
    gpu_name = sizes.pop("gpu")
    sys.stdout.writelines(_lines(Shape(**sizes), gpu_name))


if __name__ == "__main__":
    main()
