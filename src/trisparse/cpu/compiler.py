"""The C++ compiler of this machine."""

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trisparse.cpu.cache import disk_is_full
from trisparse.cpu.errors import BuildError, CacheError

NAMES = ("g++", "clang++", "c++")
ADVICE = "install g++ or clang++, or name a C++17 compiler in CXX"


@dataclass(frozen=True)
class Compiler:
    """`command` begins with a full path; `version` is what the compiler says of itself."""

    command: tuple[str, ...]
    version: str

    @property
    def name(self) -> str:
        """The command's last name, for messages."""
        return Path(self.command[0]).name

    def __str__(self) -> str:
        return f"{shlex.join(self.command)} ({self.version})"

    def run(self, arguments: Sequence[str], temporary: Path) -> tuple[bool, str]:
        """Run it with its own temporary files in `temporary` -> whether it succeeded, and what it wrote."""
        return _run([*self.command, *arguments], temporary)

    def knows(self, flags: Sequence[str], instruction: str, temporary: Path) -> bool:
        """Whether it takes `flags` and, with them, an assembler instruction.

        Raises:
            CacheError: it could not say, because the disk is full.
        """
        # a folder of its own: several questions are asked at once
        folder = Path(tempfile.mkdtemp(dir=temporary))
        source = folder / "probe.cpp"
        source.write_text(f'void probe() {{ asm volatile("{instruction}"); }}\n', encoding="ascii")
        done, text = self.run([*flags, "-c", str(source), "-o", str(folder / "probe.o")], folder)
        if not done and disk_is_full(text):
            raise CacheError(f"{self.name} found no room in {temporary}")
        return done


def find_compiler() -> Compiler:
    """The compiler named in CXX, else the first of g++, clang++ and c++ that runs.

    Raises:
        BuildError: CXX names one that does not run (nothing else is tried then), or there is none.
    """
    asked = os.environ.get("CXX", "").strip()
    if asked:
        return _asked_for(asked)
    for name in NAMES:
        path = shutil.which(name)
        version = path and _version((path,))
        if path and version:
            return Compiler((path,), version)
    raise BuildError(f"no C++ compiler: none of {', '.join(NAMES)} runs; {ADVICE}")


def _asked_for(text: str) -> Compiler:
    try:
        program, *options = shlex.split(text)
    except ValueError as error:
        raise BuildError(f"CXX: {text!r} is no command: {error}") from None
    path = shutil.which(program)
    version = path and _version((path, *options))
    if not path or not version:
        raise BuildError(f"CXX: {text!r} does not run; {ADVICE}")
    return Compiler((os.path.abspath(path), *options), version)


def _version(command: tuple[str, ...]) -> str:
    """First line of what `--version` prints; empty if it fails."""
    done, text = _run([*command, "--version"], None)
    lines = text.strip().splitlines()
    return lines[0].strip() if done and lines else ""


def _run(command: Sequence[str], temporary: Path | None) -> tuple[bool, str]:
    # messages are searched for words, so they must not be translated
    environment = {**os.environ, "LC_ALL": "C"}
    if temporary is not None:
        environment["TMPDIR"] = str(temporary)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=environment,
            check=False,
        )
    except OSError as error:
        return False, f"error: {error}\n"
    if done.returncode < 0:
        return False, f"{done.stdout}error: killed by signal {-done.returncode}\n"
    return done.returncode == 0, done.stdout
