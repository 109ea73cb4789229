"""`trisparse chat` as a process of its own at a real terminal, where Ctrl-C is a signal."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")

# an answer of a minute, whose letters are known
PROGRAM = """
import os, signal, string, sys, threading, time

import pytest

# a shell has what it starts in its background, such tests, ignore it
signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.argv[1] == "elsewhere":
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
del sys.argv[1]
# the terminal that the first process of a session opens is its own: Ctrl-C there is for it
os.open(os.ttyname(0), os.O_RDWR)

sys.path.insert(0, sys.argv.pop(1))
from cli.scripted import script

script(pytest.MonkeyPatch(), string.ascii_lowercase, before=lambda _: time.sleep(0.03))
from trisparse.cli.main import run

run()
"""
CTRL_C = b"\x03"
PATIENCE = 60


class Screen:
    """The terminal of a child, from the side of its user.

    With `signals` "elsewhere" another thread takes them: as after a signal that comes just before a system
    call, the main thread is told of it, and its call goes on.
    """

    def __init__(self, *words: str, signals: str = "here") -> None:
        mine, its = pty.openpty()
        self.child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, signals, str(Path(__file__).parents[1]), *words],
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
        )
        os.close(its)
        self._terminal, self.text = mine, ""

    def read_until(self, wanted: str) -> str:
        """Everything up to `wanted`, which must come; the next call begins behind it."""
        end = time.monotonic() + PATIENCE
        while wanted not in self.text:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._terminal], [], [], left)[0]:
                pytest.fail(f"expected {wanted!r} within {PATIENCE} s, got {self.text!r}")
            try:
                self.text += os.read(self._terminal, 4096).decode(errors="replace")
            except OSError:
                # the child has gone
                pytest.fail(f"expected {wanted!r}, got {self.text!r}")
        before, self.text = self.text.split(wanted, maxsplit=1)
        return before

    def type(self, keys: bytes) -> None:
        os.write(self._terminal, keys)

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self._terminal)


@pytest.fixture
def screen(model_folder: Path, request: pytest.FixtureRequest) -> Iterator[Screen]:
    signals = getattr(request, "param", "here")
    opened = Screen("chat", str(model_folder), "--temperature", "0", "--tokens", "2000", signals=signals)
    yield opened
    opened.close()


@pytest.mark.parametrize("screen", ["elsewhere"], indirect=True)
def test_keys_at_a_prompt_whose_wait_is_not_interrupted(screen: Screen) -> None:
    """Guards against a Ctrl-C that is heeded after the next line only."""
    screen.read_until("> ")
    # well inside the wait
    time.sleep(1)
    screen.type(CTRL_C)
    screen.read_until("interrupted")
    assert screen.child.wait(PATIENCE) == 1


def test_keys_of_a_user(screen: Screen) -> None:
    """Guards the whole way of a signal: it ends an answer, then another one, and at last the chat."""
    for line in (b"spam\n", b"eggs\n"):
        screen.read_until("> ")
        screen.type(line)
        # 2000 tokens take a minute: these are seen long before the end
        screen.read_until("lmnop")
        screen.type(CTRL_C)
        screen.read_until("stopped")
        screen.read_until("reads")
    screen.read_until("> ")
    screen.type(CTRL_C)
    screen.read_until("interrupted")
    assert screen.child.wait(PATIENCE) == 1
    assert "Traceback" not in screen.text
