"""Files below a folder: which there are, in one order everywhere, and what they hold."""

import hashlib
import os
import stat
from pathlib import Path

# text holds no NUL byte; one this early is what git too takes for a binary file
PROBE_BYTES = 8192


def regular_files(root: Path, excluded: frozenset[str] = frozenset()) -> list[Path]:
    """The regular files below `root`, sorted by relative name.

    Hidden files and folders, symbolic links and folders named in `excluded` are left out.

    Raises:
        ValueError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        # os.walk passes over a folder it cannot list, and half a corpus would look like a whole one
        raise _unreadable(error.filename, error) from error

    found: list[Path] = []
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in excluded]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    # neither a link nor a pipe is regular, and a pipe would block the reader
    regular = [path for path in found if stat.S_ISREG(_mode(path))]
    return sorted(regular, key=lambda path: relative_name(path, root))


def read_bytes(path: Path, limit: int = -1) -> bytes:
    """The file's bytes, at most `limit` of them if it is not negative.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise _unreadable(path, error) from error


def probe(path: Path) -> bytes:
    """The file's first `PROBE_BYTES`: enough to tell an empty file, a text and a binary one apart."""
    return read_bytes(path, PROBE_BYTES)


def relative_name(path: Path, root: Path) -> str:
    """The file's name from `root` on, with slashes on every system."""
    return path.relative_to(root).as_posix()


def name_hash(path: Path, root: Path) -> bytes:
    """The sha256 of the relative name."""
    return hashlib.sha256(os.fsencode(relative_name(path, root))).digest()


def is_utf8(data: bytes) -> bool:
    """Whether `data` is valid UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | Path, error: OSError) -> ValueError:
    # repr, because a name that is not UTF-8 cannot be printed as it is
    name = repr(str(path))
    return ValueError(
        f"data: cannot read {name}: {error.strerror}; make it readable or take it out of the folder"
    )
