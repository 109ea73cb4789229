"""Write down what GPU this is, by nvidia-smi, and with which versions: device.txt beside results.

PYTHONPATH=src python tools/describe_gpu.py                # benchmarks/results/gpu/device.txt
PYTHONPATH=src python tools/describe_gpu.py --rehearse --output FOLDER
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent / "lent_gpu"))

from origin import describe_device, facts
from say import say

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "gpu"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="describe_gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of device.txt")
    parser.add_argument("--rehearse", action="store_true", help="the processor in a GPU's place")
    chosen = parser.parse_args(arguments)
    if not chosen.rehearse and not torch.cuda.is_available():
        say("describe_gpu: torch sees no GPU; --rehearse runs without a GPU")
        return 2
    device = torch.device("cpu" if chosen.rehearse else "cuda")
    say(describe_device(chosen.output, facts(device)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
