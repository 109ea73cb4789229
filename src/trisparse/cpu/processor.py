"""The processor that kernels are built for."""

import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

# the same machine under the names of other systems
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Processor:
    """`machine` and `features` as Linux spells them, in lower case; empty where nothing is known."""

    machine: str
    features: frozenset[str] = frozenset()


def this_processor() -> Processor:
    """The processor that this process runs on."""
    machine = platform.machine().lower()
    return Processor(_MACHINES.get(machine, machine), _features())


def _features() -> frozenset[str]:
    if platform.system() == "Darwin":
        return _features_of_sysctl()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    return features_in(text)


def features_in(cpuinfo: str) -> frozenset[str]:
    """The features of the first processor in the text of `/proc/cpuinfo`."""
    for line in cpuinfo.splitlines():
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(words.lower().split())
    return frozenset()


def _features_of_sysctl() -> frozenset[str]:
    names = ("machdep.cpu.features", "machdep.cpu.leaf7_features")
    try:
        done = subprocess.run(["sysctl", "-n", *names], capture_output=True, text=True, check=False)
    except OSError:
        return frozenset()
    return frozenset(done.stdout.lower().split())
