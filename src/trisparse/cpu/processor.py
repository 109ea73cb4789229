"""The processor that kernels are built for."""

import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

# the same machine under the names of other systems
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Processor:
    """All as Linux spells it, `machine` and `features` in lower case; empty where nothing is known."""

    machine: str
    features: frozenset[str] = frozenset()
    vendor: str = ""


def this_processor() -> Processor:
    """The processor that this process runs on."""
    machine = platform.machine().lower()
    machine = _MACHINES.get(machine, machine)
    if platform.system() == "Darwin":
        return Processor(machine, _features_of_sysctl())
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return Processor(machine)
    return processor_in(text, machine)


def processor_in(cpuinfo: str, machine: str) -> Processor:
    """The first processor in the text of `/proc/cpuinfo`."""
    features = frozenset(_value(cpuinfo, "flags", "Features").lower().split())
    return Processor(machine, features, _value(cpuinfo, "vendor_id"))


def _value(cpuinfo: str, *names: str) -> str:
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return ""


def _features_of_sysctl() -> frozenset[str]:
    names = ("machdep.cpu.features", "machdep.cpu.leaf7_features")
    try:
        done = subprocess.run(["sysctl", "-n", *names], capture_output=True, text=True, check=False)
    except OSError:
        return frozenset()
    return frozenset(done.stdout.lower().split())
