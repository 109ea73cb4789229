"""The folder that built libraries are kept in; code is loaded from it, so it must belong to its user."""

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from trisparse import files
from trisparse.cpu.errors import CacheError
from trisparse.cpu.notice import say
from trisparse.cpu.trust import check_owner

# for a folder of ours: others may read (a library can be built once for many users), never write
FOLDER_MODE = 0o755


def cache_folder() -> Path:
    """`$TRISPARSE_CACHE/cpu`, else `trisparse/cpu` in the user's cache folder.

    Raises:
        CacheError: the user has no home folder.
    """
    chosen = os.environ.get("TRISPARSE_CACHE")
    if chosen:
        return Path(os.path.abspath(os.path.expanduser(chosen))) / "cpu"
    return _user_cache() / "trisparse" / "cpu"


def _user_cache() -> Path:
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    # a relative path there is invalid and to be ignored, says the XDG specification
    if os.path.isabs(chosen):
        return Path(chosen)
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise CacheError("the user has no home folder; set TRISPARSE_CACHE to a folder to keep libraries in")
    return Path(home, "Library", "Caches") if platform.system() == "Darwin" else Path(home, ".cache")


def prepare(folder: Path) -> None:
    """Make `folder` and the one above it where missing, and refuse them if others could write there.

    Raises:
        CacheError: they cannot be made or must not be trusted.
    """
    try:
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        folder.parent.mkdir(mode=FOLDER_MODE, exist_ok=True)
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from None
    check_owner(folder.parent)
    check_owner(folder)


def unwritable(folder: Path, error: OSError) -> CacheError:
    """The error to raise when writing in `folder` failed with `error`."""
    return CacheError(f"the cache folder {folder} cannot be written: {error.strerror or error}")


def disk_is_full(text: str) -> bool:
    """Whether a message of another program says that there is no room."""
    return any(os.strerror(code) in text for code in (errno.ENOSPC, errno.EDQUOT))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`; wait, and say so, while another process does.

    Raises:
        CacheError: the file cannot be made, or its file system has no locks.
    """
    with ExitStack() as held:
        try:
            held.enter_context(files.locked(path, _tell_to_wait))
        except OSError as error:
            raise unwritable(path.parent, error) from None
        yield


def _tell_to_wait() -> None:
    say("another process is building the CPU kernels; waiting for it")
