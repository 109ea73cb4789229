"""Whether somebody else could have written what is about to be loaded: code from there runs as ours."""

import os
import stat
from pathlib import Path
from typing import NoReturn

from trisparse.cpu.errors import CacheError

# where Linux keeps rights of single users and groups; the mode then has their union in its bits for the group
_ACCESS_LIST = "system.posix_acl_access"


def check_owner(path: Path) -> None:
    """Refuse what others could have put there, or changed.

    Raises:
        CacheError: `path` is not ours (or root's), everyone or a group of several may write it, or it cannot
            be looked at.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise CacheError(f"the cache at {path} cannot be read: {error.strerror}") from None
    if status.st_uid not in (os.geteuid(), 0):
        _refuse(path, "it belongs to another user")
    if status.st_mode & stat.S_IWOTH:
        _refuse(path, "everyone may write there")
    if status.st_mode & stat.S_IWGRP:
        if _has_access_list(path):
            _refuse(path, "users or groups of its access list may write there")
        if not _is_private(status.st_gid):
            _refuse(path, f"the group {_name_of(status.st_gid)} may write there")


def _refuse(path: Path, why: str) -> NoReturn:
    advice = f"chmod go-w {path}, or name a folder of your own in TRISPARSE_CACHE"
    raise CacheError(f"the cache at {path} is refused: {why}; {advice}")


def _is_private(group: int) -> bool:
    """Whether nobody but the user and root is in `group`: where it may write, the user alone may.

    So is a group with the user's name that is the user's own by default, which is how login programs know
    that a umask of 002 opens nothing, and group 0. Who is in a group that has no name, nobody knows.
    """
    # not on every system, and this module must be importable there
    import grp
    import pwd

    try:
        found = grp.getgrgid(group)
    except KeyError:
        return False
    try:
        user = pwd.getpwuid(os.geteuid())
        name, own = user.pw_name, user.pw_gid
    except KeyError:
        # containers run under user ids that nobody has heard of
        name, own = "", -1
    if set(found.gr_mem) - {name, "root"}:
        return False
    return group == 0 or (group == own and found.gr_name == name)


def _name_of(group: int) -> str:
    import grp

    try:
        return grp.getgrgid(group).gr_name
    except KeyError:
        return str(group)


def _has_access_list(path: Path) -> bool:
    if not hasattr(os, "listxattr"):
        return False
    try:
        return _ACCESS_LIST in os.listxattr(path)
    except OSError:
        # a file system without such lists
        return False
