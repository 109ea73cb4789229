"""The folder of built libraries: code is loaded from it, so nobody else may write there."""

import os
import platform
import stat
import subprocess
import time
from pathlib import Path

import pytest

from trisparse.cpu.build import build
from trisparse.cpu.cache import cache_folder, locked
from trisparse.cpu.errors import CacheError

from .standin import Script, one_line

pytestmark = pytest.mark.usefixtures("clean_environment", "real_compiler")
plain = pytest.mark.usefixtures("plain_processor")


@plain
@pytest.mark.parametrize("level", ["folder", "above", "place", "file"])
def test_a_cache_that_everyone_may_write_is_refused(sources: Path, folder: Path, level: str) -> None:
    """Guards against running code that another user put in place."""
    library = build(sources, folder).path
    path = {"folder": folder, "above": folder.parent, "place": library.parent, "file": library}[level]
    path.chmod(0o777)
    with pytest.raises(CacheError, match="everyone may write") as error:
        build(sources, folder)
    assert str(path) in one_line(error)


@plain
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("level", ["folder", "above", "place", "file"])
def test_a_cache_of_another_user_is_refused(sources: Path, folder: Path, level: str) -> None:
    """Guards against running code that another user put in place."""
    library = build(sources, folder).path
    path = {"folder": folder, "above": folder.parent, "place": library.parent, "file": library}[level]
    os.chown(path, 12345, -1)
    with pytest.raises(CacheError, match="another user"):
        build(sources, folder)


@plain
def test_a_loose_umask_does_not_open_the_cache(sources: Path, folder: Path) -> None:
    """Guards against a library of ours that we must refuse ourselves, and a cache open to others."""
    folder.parent.parent.mkdir(exist_ok=True)
    before = os.umask(0)
    try:
        library = build(sources, folder).path
    finally:
        os.umask(before)
    for path in (folder.parent, folder, library.parent, library):
        assert not path.stat().st_mode & (stat.S_IWOTH | stat.S_IWGRP), path
    assert not build(sources, folder).fresh


@pytest.mark.parametrize("level", ["cache", "cpu"])
def test_a_file_where_the_folder_should_be_is_a_reason(sources: Path, folder: Path, level: str) -> None:
    """Guards against a traceback where the cache cannot be made; root too cannot write there."""
    path = folder if level == "cpu" else folder.parent
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    with pytest.raises(CacheError, match="cannot be written") as error:
        build(sources, folder)
    assert str(folder) in one_line(error)


@pytest.mark.parametrize(
    ("variables", "system", "wanted"),
    [
        ({"TRISPARSE_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, "Linux", "/a/b/cpu"),
        ({"TRISPARSE_CACHE": "~/b"}, "Linux", "/home/me/b/cpu"),
        ({"XDG_CACHE_HOME": "/x"}, "Linux", "/x/trisparse/cpu"),
        ({"XDG_CACHE_HOME": "relative"}, "Linux", "/home/me/.cache/trisparse/cpu"),
        ({}, "Linux", "/home/me/.cache/trisparse/cpu"),
        ({}, "Darwin", "/home/me/Library/Caches/trisparse/cpu"),
    ],
)
def test_cache_folder_is_where_the_platform_has_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], system: str, wanted: str
) -> None:
    """Guards against a library in the working folder or somewhere unexpected."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(platform, "system", lambda: system)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(cache_folder()) == wanted


def test_a_user_without_home_gets_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a cache in a folder named "~", as where a container runs under an unknown user id."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(CacheError, match="TRISPARSE_CACHE"):
        cache_folder()


def test_a_forked_process_does_not_keep_the_lock(folder: Path) -> None:
    """Guards against a worker forked during a build that makes all others wait until it ends."""
    folder.mkdir(parents=True)
    path = folder / "x.lock"
    with locked(path):
        child = subprocess.Popen(["sleep", "30"], pass_fds=_descriptors_of(path))
    began = time.monotonic()
    with locked(path):
        waited = time.monotonic() - began
    child.kill()
    child.wait()
    assert waited < 5


def _descriptors_of(path: Path) -> list[int]:
    """This process' open descriptors of the file at `path`."""
    found = []
    for name in os.listdir("/dev/fd"):
        try:
            if os.path.samestat(os.fstat(int(name)), path.stat()):
                found.append(int(name))
        except OSError:
            continue
    assert found
    return found


@plain
def test_no_space_left_is_a_fault_of_the_cache(sources: Path, folder: Path, compiler: Script) -> None:
    """Guards against a quota on the home folder that takes the backend away: another folder may have room."""
    compiler('case "$*" in *" -c "*) exec "$REAL" "$@" -o /dev/full;; esac')
    with pytest.raises(CacheError, match="No space left on device") as error:
        build(sources, folder)
    assert "failed on dispatch.cpp" in one_line(error)
