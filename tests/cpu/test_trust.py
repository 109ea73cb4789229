"""Who else may write in the cache: a group of one is nobody else, any other group is refused."""

import grp
import os
import pwd
import stat
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

from trisparse.cpu import trust
from trisparse.cpu.build import build
from trisparse.cpu.errors import CacheError
from trisparse.cpu.trust import check_owner

from .standin import one_line

pytestmark = pytest.mark.usefixtures("clean_environment", "real_compiler")
plain = pytest.mark.usefixtures("plain_processor")
LEVELS = pytest.mark.parametrize("level", ["folder", "above", "place", "file"])

OWN, TEAM, ROOT = 4711, 4712, 0


def give_tables(
    monkeypatch: pytest.MonkeyPatch, groups: dict[int, tuple[str, list[str]]], primary: int | None
) -> None:
    """A system with `groups`, number -> (name, members), and a user "me" whose own is `primary`, if known."""

    def group_of(number: int) -> SimpleNamespace:
        name, members = groups[number]
        return SimpleNamespace(gr_name=name, gr_mem=members)

    def user_of(_number: int) -> SimpleNamespace:
        if primary is None:
            raise KeyError
        return SimpleNamespace(pw_name="me", pw_gid=primary)

    monkeypatch.setattr(grp, "getgrgid", group_of)
    monkeypatch.setattr(pwd, "getpwuid", user_of)


class Folder:
    """What `check_owner` sees of a folder of ours that `group` has; only root can make a real one."""

    def __init__(self, group: int, mode: int = 0o775) -> None:
        self.status = SimpleNamespace(st_uid=os.geteuid(), st_gid=group, st_mode=stat.S_IFDIR | mode)

    def stat(self) -> SimpleNamespace:
        return self.status

    def __fspath__(self) -> str:
        return "/nowhere"


@pytest.mark.parametrize(
    ("group", "entry", "primary"),
    [
        pytest.param(OWN, ("me", []), OWN, id="the user's own"),
        pytest.param(OWN, ("me", ["me"]), OWN, id="the user's own, that lists the user"),
        pytest.param(OWN, ("me", ["root"]), OWN, id="the user's own, that lists root"),
        pytest.param(ROOT, ("root", []), TEAM, id="root's"),
        pytest.param(ROOT, ("wheel", ["root"]), TEAM, id="root's by another name"),
        pytest.param(ROOT, ("root", []), None, id="root's, for a user without a name"),
    ],
)
def test_group_of_nobody_else_may_write(
    monkeypatch: pytest.MonkeyPatch, group: int, entry: tuple[str, list[str]], primary: int | None
) -> None:
    """Guards against losing the cache to a umask of 002, which is the default where each user has a group."""
    give_tables(monkeypatch, {group: entry}, primary)
    check_owner(Folder(group))


@pytest.mark.parametrize(
    ("group", "entry", "primary"),
    [
        pytest.param(TEAM, ("team", ["me", "you"]), OWN, id="a team's"),
        pytest.param(TEAM, ("team", []), OWN, id="one that others may have as their own"),
        pytest.param(TEAM, ("users", []), TEAM, id="one that all users have as their own"),
        pytest.param(OWN, ("me", ["you"]), OWN, id="the user's own, with a guest"),
        pytest.param(TEAM, ("me", []), OWN, id="one that only has the user's name"),
        pytest.param(ROOT, ("wheel", ["root", "you"]), OWN, id="root's, with a guest"),
        pytest.param(TEAM, None, OWN, id="one without a name"),
        pytest.param(TEAM, ("team", []), None, id="a team's, for a user without a name"),
    ],
)
def test_group_that_others_may_be_in_may_not_write(
    monkeypatch: pytest.MonkeyPatch, group: int, entry: tuple[str, list[str]] | None, primary: int | None
) -> None:
    """Guards against code that a colleague put into a shared folder."""
    give_tables(monkeypatch, {group: entry} if entry else {}, primary)
    name = entry[0] if entry else str(group)
    with pytest.raises(CacheError, match=f"refused: the group {name} may write there; chmod go-w ") as error:
        check_owner(Folder(group))
    assert "TRISPARSE_CACHE" in one_line(error)
    # who may only read there does no harm
    check_owner(Folder(group, 0o755))


@plain
@LEVELS
def test_cache_that_a_team_may_write_is_refused(
    sources: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """Guards against a folder, library or file on the way that is not looked at."""
    library = build(sources, folder).path
    path = {"folder": folder, "above": folder.parent, "place": library.parent, "file": library}[level]
    path.chmod(0o775)
    give_tables(monkeypatch, {path.stat().st_gid: ("team", ["me", "you"])}, OWN)
    with pytest.raises(CacheError, match="the group team may write") as error:
        build(sources, folder)
    assert str(path) in one_line(error)


@plain
def test_cache_that_only_the_users_own_group_may_write_is_used(
    sources: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against building anew, in every process, where folders are made with a umask of 002."""
    before = os.umask(0o002)
    try:
        folder.mkdir(parents=True)
        monkeypatch.setattr(trust, "_is_private", lambda _group: True)
        library = build(sources, folder).path
    finally:
        os.umask(before)
    for path in (folder.parent, folder, library.parent, library):
        path.chmod(0o775)
    assert not build(sources, folder).fresh


@plain
@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="this system has no access lists of this kind")
def test_access_list_that_lets_others_write_is_refused(
    sources: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against rights of another user that hide behind those of a group of one."""
    build(sources, folder)
    # owner and user 4713 may write; the mask, which the mode shows as the group's, lets them
    entries = [(1, 7, -1), (2, 7, 4713), (4, 5, -1), (16, 7, -1), (32, 5, -1)]
    listed = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(folder, "system.posix_acl_access", listed)
    except OSError:
        pytest.skip("the file system of temporary files has no access lists")
    monkeypatch.setattr(trust, "_is_private", lambda _group: True)
    with pytest.raises(CacheError, match="access list may write"):
        build(sources, folder)
    folder.chmod(0o755)
    assert not build(sources, folder).fresh
