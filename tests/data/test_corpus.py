"""Corpora: which files, in which order, in which split, and what is refused."""

import os
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

from trisparse.data.corpus import HELDOUT_MODULES, Corpus, folder_corpus, standard_library_corpus
from trisparse.data.tokenizer import END_OF_DOCUMENT


def write(root: Path, **contents: bytes) -> Path:
    """Files named after the keywords, `__` standing for a folder's slash; returns `root`."""
    for name, content in contents.items():
        path = root / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def many_files(root: Path, count: int) -> Path:
    return write(root, **{f"part{number % 7}__file{number}": b"text %d" % number for number in range(count)})


def names(corpus: Corpus) -> list[str]:
    files = {*corpus.training, *corpus.heldout}
    return sorted(path.relative_to(corpus.root).as_posix() for path in files)


def test_stream_is_each_document_followed_by_its_end(tmp_path: Path) -> None:
    """Guards against a missing separator, which would join two documents, and against an empty document."""
    write(tmp_path, a=b"one", b=b"", c=b"\xff\n")
    paths = tuple(tmp_path / f"{name}.txt" for name in "abc")
    stream = Corpus(name="three", root=tmp_path, training=paths, heldout=()).stream("training")
    assert stream.dtype == numpy.uint16
    assert stream.tolist() == [*b"one", END_OF_DOCUMENT, 0xFF, 0x0A, END_OF_DOCUMENT]


def test_stream_of_an_empty_split_is_empty(tmp_path: Path) -> None:
    """Guards against an exception from joining nothing; the window cutter says what is missing."""
    assert Corpus(name="none", root=tmp_path, training=(), heldout=()).stream("heldout").shape == (0,)


def test_unknown_split_is_refused(tmp_path: Path) -> None:
    """Guards against evaluating on the training text because of a misspelt name."""
    with pytest.raises(ValueError, match=r"^split: expected 'training' or 'heldout', got 'test'$"):
        Corpus(name="none", root=tmp_path, training=(), heldout=()).stream("test")  # type: ignore[arg-type]


def test_file_in_both_splits_is_refused(tmp_path: Path) -> None:
    """Guards every measurement on held-out text."""
    path = write(tmp_path, a=b"text") / "a.txt"
    with pytest.raises(
        ValueError, match=r"^heldout: expected files that are not in training, got '.*a\.txt'"
    ):
        Corpus(name="leak", root=tmp_path, training=(path,), heldout=(path,))


def test_standard_library_heldout_is_the_fixed_list_and_never_trained_on() -> None:
    """Guards the comparison of runs: a held-out text that moves or leaks makes their losses incomparable."""
    corpus = standard_library_corpus()
    heldout = [path.relative_to(corpus.root).as_posix() for path in corpus.heldout]
    assert heldout == sorted(set(heldout) & set(HELDOUT_MODULES))
    assert len(heldout) >= 15
    assert not set(corpus.training) & set(corpus.heldout)
    contents = {path.read_bytes() for path in corpus.training}
    assert not any(path.read_bytes() in contents for path in corpus.heldout)


def test_standard_library_is_long_and_without_tests_or_packages() -> None:
    """Guards against a corpus that depends on what is installed beside Python."""
    corpus = standard_library_corpus()
    folders = {part for path in corpus.training for part in path.relative_to(corpus.root).parts[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    assert corpus.size("training").bytes > 5_000_000
    assert corpus.size("heldout").bytes > 500_000
    assert corpus.stream("heldout").size == sum(corpus.size("heldout"))


def test_standard_library_keeps_to_its_rules_in_another_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the excluded folders one by one, on a library made for it."""
    for name in ("argparse.py", "os.py", "json/decoder.py", "json/empty.py", "readme.txt", ".hidden.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if "empty" in name else name)
    for folder in (
        "test",
        "json/tests",
        "idle_test",
        "site-packages",
        "dist-packages",
        "__pycache__",
        "_bundled",
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "left_out.py").write_text("x")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    corpus = standard_library_corpus()
    assert [path.name for path in corpus.heldout] == ["argparse.py"]
    assert names(corpus) == ["argparse.py", "json/decoder.py", "os.py"]


def test_python_without_its_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards an embedded Python, whose library is a zip file: the error must name the way out."""
    write(tmp_path, a=b"no module")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    wanted = (
        r"^data: expected the standard library's source in .*found 0 modules .*give a folder of text instead$"
    )
    with pytest.raises(ValueError, match=wanted):
        standard_library_corpus()


def test_folder_takes_text_and_leaves_out_the_rest(tmp_path: Path) -> None:
    """Guards against training on images, version control or links, and against hanging on a pipe."""
    outside = write(tmp_path / "outside", secret=b"text")
    root = write(
        tmp_path / "text", a=b"one", sub__b=b"two", empty=b"", image=b"\x89PNG\x00", _hidden=b"three"
    )
    (root / "_hidden.txt").rename(root / ".hidden.txt")
    write(root / ".git", config=b"text")
    (root / "late_nul").write_bytes(b"x" * 8192 + b"\0")
    (root / "link.txt").symlink_to(outside / "secret.txt")
    (root / "folder_link").symlink_to(outside)
    os.mkfifo(root / "pipe")
    corpus = folder_corpus(root)
    assert corpus.name == "text"
    assert names(corpus) == ["a.txt", "late_nul", "sub/b.txt"]
    assert [path.name for path in corpus.skipped] == ["image.txt"]


def test_folder_may_itself_be_hidden_or_linked(tmp_path: Path) -> None:
    """Guards against applying the rules for a folder's contents to the folder that was asked for."""
    root = write(tmp_path / ".hidden", a=b"one", b=b"two")
    (tmp_path / "link").symlink_to(root)
    assert names(folder_corpus(tmp_path / "link")) == names(folder_corpus(str(root))) == ["a.txt", "b.txt"]


def test_folder_order_and_split_do_not_depend_on_when_or_where(tmp_path: Path) -> None:
    """Guards resuming on another machine: directory order, creation order and root must not show."""
    here = many_files(tmp_path / "here", 60)
    there = tmp_path / "there"
    for path in sorted(here.rglob("*.txt"), reverse=True):
        copy = there / path.relative_to(here)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    first, second = folder_corpus(here), folder_corpus(there)
    assert first.fingerprint() == second.fingerprint()
    for split in ("training", "heldout"):
        assert list(first.documents(split)) == list(second.documents(split))
    assert list(first.training) == sorted(first.training, key=lambda path: path.relative_to(here).as_posix())


def test_folder_holds_out_about_five_percent_and_later_files_move_no_other(tmp_path: Path) -> None:
    """Guards a growing folder: a file must not move from training to held-out when others arrive."""
    before = folder_corpus(many_files(tmp_path, 400))
    after = folder_corpus(many_files(tmp_path, 800))
    assert 20 <= len(after.heldout) <= 60
    assert set(before.heldout) <= set(after.heldout)
    assert set(before.training) <= set(after.training)
    assert not set(after.training) & set(after.heldout)


@pytest.mark.parametrize("count", range(2, 12))
def test_small_folder_has_a_file_in_each_split(tmp_path: Path, count: int) -> None:
    """Guards against a run without any held-out text, or without any other."""
    corpus = folder_corpus(many_files(tmp_path, count))
    assert len(corpus.training) >= 1
    assert len(corpus.heldout) >= 1
    assert len(corpus.training) + len(corpus.heldout) == count


def test_folder_whose_files_all_hash_low_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the other end of the fixed split, which real names reach too seldom to be tested by chance."""
    monkeypatch.setattr("trisparse.data.corpus.HELDOUT_SHARE", 0.999999)
    root = write(many_files(tmp_path, 5), long=b"x" * 100)
    corpus = folder_corpus(root)
    assert (len(corpus.training), corpus.heldout, corpus.cut) == (6, (root / "long.txt",), 90)


@pytest.mark.parametrize("large", ["a", "b"])
def test_file_too_small_for_a_split_makes_none(tmp_path: Path, large: str) -> None:
    """Guards against a split of five bytes beside a megabyte, for which the longest window is too long."""
    line = b"the large file\n"
    write(tmp_path, **{"a": b"tiny", "b": b"tiny", large: line * 1000})
    corpus = folder_corpus(tmp_path)
    assert corpus.cut == 900 * len(line)
    assert corpus.size("training").bytes == 900 * len(line) + 4
    assert list(corpus.documents("heldout")) == [line * 100]


def test_copies_of_heldout_files_are_not_trained_on(tmp_path: Path) -> None:
    """Guards the promise that the splits share no text in folders with vendored files."""
    root = many_files(tmp_path, 100)
    before = folder_corpus(root)
    secret = before.heldout[0].read_bytes()
    others = {f"copies__file{number}": secret for number in range(40)}
    corpus = folder_corpus(write(root, **others))
    assert secret in corpus.documents("heldout")
    assert secret not in corpus.documents("training")
    copied = [path for path in corpus.heldout if path.parent.name == "copies"]
    assert len(corpus.copies) == 40 - len(copied) > 0
    assert f"{len(corpus.copies)} training files left out that a held-out one equals" in corpus.describe()
    assert folder_corpus(root).fingerprint() == corpus.fingerprint()


def test_copies_of_one_text_are_refused(tmp_path: Path) -> None:
    """Guards against a training split without a text."""
    with pytest.raises(ValueError, match=r"^data: expected more than copies of one text in .*, got 4"):
        folder_corpus(write(tmp_path, **dict.fromkeys("abcd", b"one text")))


def test_single_file_is_cut_at_a_line_near_nine_tenths(tmp_path: Path) -> None:
    """Guards the commonest folder of all: one long text, whose end must not be trained on."""
    text = b"".join(b"line %d\n" % number for number in range(1000))
    corpus = folder_corpus(write(tmp_path, book=text))
    (training,), (heldout,) = corpus.documents("training"), corpus.documents("heldout")
    assert training + heldout == text
    assert training.endswith(b"\n")
    assert 0.8 * len(text) < len(training) <= 0.9 * len(text)


@pytest.mark.parametrize("text", [b"ab", b"\n\n", b"x" * 1000, b"title\n" + b"y" * 1000])
def test_single_file_without_lines_is_cut_all_the_same(tmp_path: Path, text: bytes) -> None:
    """Guards against an empty split, and against a cut at a line end far from nine tenths."""
    corpus = folder_corpus(write(tmp_path, book=text))
    (training,), (heldout,) = corpus.documents("training"), corpus.documents("heldout")
    assert training + heldout == text
    assert len(training) == len(text) * 9 // 10


def test_files_that_are_not_utf8_are_used_and_named(tmp_path: Path) -> None:
    """Guards against dropping or mangling Latin-1 text without a word."""
    corpus = folder_corpus(write(tmp_path, good="é".encode(), latin=b"caf\xe9", torn=b"\xe2\x82"))
    assert [path.name for path in corpus.not_utf8()] == ["latin.txt", "torn.txt"]
    documents = [*corpus.documents("training"), *corpus.documents("heldout")]
    assert sorted(documents) == sorted(["é".encode(), b"caf\xe9", b"\xe2\x82"])
    (tmp_path / "good.txt").unlink()
    (tmp_path / "torn.txt").unlink()
    assert [path.name for path in folder_corpus(tmp_path).not_utf8()] == ["latin.txt"]


def test_description_counts_files_and_bytes_and_says_what_is_unusual(tmp_path: Path) -> None:
    """Guards the line that tells a user what the run reads."""
    corpus = folder_corpus(write(tmp_path / "mixed", a=b"four", b=b"\xff" * 4, image=b"\0"))
    wanted = (
        "mixed: 1 training file (4 bytes), 1 held-out file (4 bytes), "
        "1 non-UTF-8 file read as plain bytes, 1 binary file left out"
    )
    assert corpus.describe() == wanted
    single = folder_corpus(write(tmp_path / "single", a=b"x" * 20000))
    assert single.describe() == (
        "single: 1 training file (18,000 bytes), 1 held-out file (2,000 bytes), "
        "one file held out from byte 18,000 on"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "a.txt").write_bytes(b"ONE"),
        lambda root: (root / "a.txt").rename(root / "z.txt"),
        lambda root: (root / "a.txt").unlink(),
        lambda root: write(root, d=b"four"),
        lambda root: write(root, a=b"two", b=b"one"),
    ],
    ids=["content", "name", "removed", "added", "swapped"],
)
def test_changed_file_set_changes_the_fingerprint(tmp_path: Path, change: Callable[[Path], object]) -> None:
    """Guards a resumed run: on another text it would go on as if nothing had happened."""
    write(tmp_path, a=b"one", b=b"two", c=b"three")
    before = folder_corpus(tmp_path).fingerprint()
    change(tmp_path)
    assert folder_corpus(tmp_path).fingerprint() != before


def test_fingerprint_sees_the_split_but_not_files_outside_it(tmp_path: Path) -> None:
    """Guards against a false alarm from an image, and against a silent one when a file changes sides."""
    write(tmp_path, a=b"one", b=b"two", c=b"two")
    a, b, c = (tmp_path / f"{name}.txt" for name in "abc")
    divided = Corpus(name="x", root=tmp_path, training=(a,), heldout=(b,)).fingerprint()
    renamed = Corpus(name="x", root=tmp_path, training=(a,), heldout=(c,)).fingerprint()
    joined = Corpus(name="x", root=tmp_path, training=(a, b), heldout=()).fingerprint()
    first_cut = Corpus(name="x", root=tmp_path, training=(a,), heldout=(a,), cut=1).fingerprint()
    second_cut = Corpus(name="x", root=tmp_path, training=(a,), heldout=(a,), cut=2).fingerprint()
    assert len({divided, renamed, joined, first_cut, second_cut}) == 5
    before = folder_corpus(tmp_path).fingerprint()
    write(tmp_path, empty=b"", image=b"\0")
    assert folder_corpus(tmp_path).fingerprint() == before


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    """Guards the commonest mistake, a misspelt path."""
    with pytest.raises(
        ValueError, match=r"^data: expected a folder of text, got '.*nowhere', which cannot be found; check"
    ):
        folder_corpus(tmp_path / "nowhere")


def test_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    """Guards against a walk that finds nothing below a file."""
    write(tmp_path, book=b"text")
    with pytest.raises(
        ValueError, match=r"^data: expected a folder of text, got the file '.*book\.txt'; put it"
    ):
        folder_corpus(tmp_path / "book.txt")


@pytest.mark.parametrize(
    ("contents", "found"),
    [
        ({}, "empty files: 0, binary files: 0"),
        ({"a": b"", "b": b""}, "empty files: 2, binary files: 0"),
        ({"a": b"", "image": b"\0"}, "empty files: 1, binary files: 1"),
    ],
    ids=["nothing", "empty", "binary"],
)
def test_folder_without_text_is_refused(tmp_path: Path, contents: dict[str, bytes], found: str) -> None:
    """Guards against training on nothing; the message tells what was looked for."""
    write(tmp_path, **contents)
    wanted = rf"^data: expected text in '.*', found none \({found}\); give a folder .* without a NUL byte"
    with pytest.raises(ValueError, match=wanted):
        folder_corpus(tmp_path)


def test_single_byte_cannot_be_divided(tmp_path: Path) -> None:
    """Guards the smallest folder against an empty split."""
    with pytest.raises(ValueError, match=r"^data: expected at least 2 bytes of text, got 1 in '.*a\.txt'"):
        folder_corpus(write(tmp_path, a=b"x"))


def test_file_removed_after_the_listing_is_named(tmp_path: Path) -> None:
    """Guards a long run: the error must name the file, not a line of this package."""
    corpus = folder_corpus(write(tmp_path, a=b"one", b=b"two"))
    (tmp_path / "a.txt").unlink()
    for read in (corpus.fingerprint, corpus.describe):
        with pytest.raises(ValueError, match=r"^data: cannot read '.*a\.txt': No such file or directory; "):
            read()


def test_unreadable_file_and_folder_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against passing over what cannot be read: half a corpus would look like a whole one."""
    root = write(tmp_path, a=b"one", b=b"two", sub__c=b"three")
    scandir, opened = os.scandir, Path.open

    def scandir_without_permission(path: str) -> object:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def open_without_permission(path: Path, mode: str) -> object:
        if path.name == "b.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, mode)

    # permission bits would not do: the superuser reads everything
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir_without_permission)
        with pytest.raises(
            ValueError, match=r"^data: cannot read '.*sub': Permission denied; make it readable"
        ):
            folder_corpus(root)
    monkeypatch.setattr(Path, "open", open_without_permission)
    with pytest.raises(
        ValueError, match=r"^data: cannot read '.*b\.txt': Permission denied; make it readable"
    ):
        folder_corpus(root)
