"""Builds that meet others, are killed, or run out of space."""

import os
import resource
import signal
import threading
import time
from pathlib import Path

import pytest

from trisparse.cpu.build import build

from .standin import Script, names, start

pytestmark = pytest.mark.usefixtures("clean_environment", "real_compiler")
plain = pytest.mark.usefixtures("plain_processor")


def test_two_processes_build_once_and_the_second_says_that_it_waits(
    sources: Path, folder: Path, compiler: Script
) -> None:
    """Guards against two compilers in one place, and against a silent wait."""
    calls = compiler('case "$*" in *" -c "*dispatch.cpp*) echo one >> $CALLS; sleep 0.7;; esac')
    both = [start(sources, folder) for _ in range(2)]
    ends = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert sorted(out.strip() for out, _ in ends) == ["found", "fresh"]
    assert len(calls.read_text().splitlines()) == 1
    waiting = [err for out, err in ends if out.strip() == "found"]
    assert "another process is building the CPU kernels; waiting" in waiting[0]


@plain
def test_two_threads_build_once(sources: Path, folder: Path, compiler: Script) -> None:
    """Guards against two threads of one process that do not exclude one another."""
    calls = compiler('case "$*" in *" -c "*dispatch.cpp*) echo one >> $CALLS; sleep 0.3;; esac')
    made: list[bool] = []
    threads = [threading.Thread(target=lambda: made.append(build(sources, folder).fresh)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False, False, True]
    assert len(calls.read_text().splitlines()) == 1


@pytest.mark.parametrize("moment", ["compiling", "linking", "linked"])
def test_a_killed_build_leaves_nothing_that_is_loaded(
    sources: Path, folder: Path, compiler: Script, moment: str
) -> None:
    """Guards against half a library after kill -9, and against a lock that is never given back."""
    # the compilers live on after their parent and go on writing
    case = {"compiling": '*" -c "*portable.cpp*', "linking": "*-shared*", "linked": "*-shared*"}[moment]
    work = '"$REAL" "$@"' if moment == "linked" else ":"
    calls = compiler(f'case "$*" in {case}) {work}; echo here >> $CALLS; sleep 0.5; exec "$REAL" "$@";; esac')
    process = start(sources, folder)
    deadline = time.monotonic() + 60
    while not calls.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert all(name.startswith(".") for name in names(folder))
    made = build(sources, folder)
    assert made.fresh
    time.sleep(0.6)
    assert not build(sources, folder).fresh
    assert [name for name in names(folder) if not name.startswith(".")] == [made.path.parent.name]
    # by now the compilers of the killed process have ended
    build(sources, folder, force=True)
    assert names(folder) == [made.path.parent.name]


@pytest.mark.parametrize("delay", [0.15, 0.25, 0.35, 0.45])
def test_a_build_killed_at_any_time_is_made_good(sources: Path, folder: Path, delay: float) -> None:
    """Guards against a moment between the steps in which a kill leaves a cache that is not recovered."""
    process = start(sources, folder, start_new_session=True)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    again = start(sources, folder)
    out, err = again.communicate(timeout=60)
    assert out.strip() in ("fresh", "found"), err
    assert len(names(folder)) == 1


def test_a_full_disk_gives_a_reason_and_leaves_nothing(sources: Path, folder: Path) -> None:
    """Guards against half a library where files may not grow; the limit holds for the compilers too."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    process = start(sources, folder, preexec_fn=limit)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "BuildError" in err or "CacheError" in err, err
    assert names(folder) == []
    assert build(sources, folder).fresh
