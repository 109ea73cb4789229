"""Corpora: files on this machine, divided into text to train on and text held out."""

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy
from numpy.typing import NDArray

from trisparse.data.files import (
    PROBE_BYTES,
    is_utf8,
    name_hash,
    probe,
    read_bytes,
    regular_files,
    relative_name,
)
from trisparse.data.tokenizer import END_OF_DOCUMENT, encode_bytes
from trisparse.files import sha256_of

Split = Literal["training", "heldout"]

# long modules of different subjects; a Python that lacks one does without it
HELDOUT_MODULES = (
    "argparse.py",
    "asyncio/streams.py",
    "concurrent/futures/process.py",
    "configparser.py",
    "difflib.py",
    "doctest.py",
    "email/_header_value_parser.py",
    "heapq.py",
    "http/cookiejar.py",
    "imaplib.py",
    "ipaddress.py",
    "logging/handlers.py",
    "mailbox.py",
    "multiprocessing/managers.py",
    "plistlib.py",
    "statistics.py",
    "tarfile.py",
    "turtle.py",
    "unittest/mock.py",
    "xml/dom/minidom.py",
)

# tests and installed packages differ from one distribution of Python to the next
EXCLUDED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled"}
)

HELDOUT_SHARE = 0.05
# of the bytes: held-out files of less say nothing of a model, and more leaves little to train on
LEAST_HELDOUT, MOST_HELDOUT = 0.005, 0.5


class SplitSize(NamedTuple):
    """What a split holds: its files and their bytes, the empty ones not counted."""

    files: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Files in two splits that share no text. Reads them anew at each call and keeps nothing in memory.

    Attributes:
        name: what to call it in a log or a table.
        root: the absolute folder that the files' relative names start from.
        training: the files to train on, in the order of the stream.
        heldout: the files never trained on.
        cut: None; or, if one file is in both splits, the byte at which its held-out part begins.
        skipped: the files left out because they are binary.
        copies: the files left out of training because a held-out file holds the same.

    Every method that reads raises `ValueError` with the file's name if a file cannot be read.

    Raises:
        ValueError: a file is in both splits and there is no `cut`, or several are.
    """

    name: str
    root: Path
    training: tuple[Path, ...]
    heldout: tuple[Path, ...]
    cut: int | None = None
    skipped: tuple[Path, ...] = ()
    copies: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        both = sorted(self._in_both())
        if len(both) > (self.cut is not None):
            raise ValueError(
                f"heldout: expected files that are not in training, got {str(both[0])!r} in both"
            )

    def documents(self, split: Split) -> Iterator[bytes]:
        """The contents of the split's files in order, those of empty files left out."""
        both = self._in_both()
        for path in self._paths(split):
            document = read_bytes(path)
            if path in both:
                document = document[: self.cut] if split == "training" else document[self.cut :]
            if document:
                yield document

    def stream(self, split: Split) -> NDArray[numpy.uint16]:
        """The split as byte tokens, uint16 `[tokens]`: each document's bytes, then `END_OF_DOCUMENT`."""
        documents = list(self.documents(split))
        # one array filled in place: joining arrays would hold the text twice more
        stream = numpy.empty(sum(map(len, documents)) + len(documents), dtype=numpy.uint16)
        stop = 0
        for document in documents:
            start, stop = stop, stop + len(document) + 1
            stream[start : stop - 1] = encode_bytes(document)
            stream[stop - 1] = END_OF_DOCUMENT
        return stream

    def size(self, split: Split) -> SplitSize:
        """The number of files and bytes in the split."""
        lengths = [len(document) for document in self.documents(split)]
        return SplitSize(len(lengths), sum(lengths))

    def not_utf8(self) -> tuple[Path, ...]:
        """The files that are not valid UTF-8. They are used all the same: a token is a byte."""
        files = dict.fromkeys(self.training + self.heldout)
        return tuple(path for path in files if not is_utf8(read_bytes(path)))

    def fingerprint(self) -> str:
        """A sha256, in hex, over both splits' relative names and contents: another text, another fingerprint.

        It does not depend on where the root lies, nor on files that are not in a split.
        """
        digest = hashlib.sha256(f"cut {self.cut}".encode())
        for paths in (self.training, self.heldout):
            digest.update(f"files {len(paths)}".encode())
            for path in paths:
                # of one length each, so that no byte can move from a name to a content unseen
                digest.update(name_hash(path, self.root) + hashlib.sha256(read_bytes(path)).digest())
        return digest.hexdigest()

    def describe(self) -> str:
        """One line for people: files and bytes per split, then what is unusual about them."""
        training, heldout, not_utf8 = self.size("training"), self.size("heldout"), self.not_utf8()
        facts = [f"{_files(training.files, 'training')} ({training.bytes:,} bytes)"]
        facts += [f"{_files(heldout.files, 'held-out')} ({heldout.bytes:,} bytes)"]
        if self.cut is not None:
            facts += [f"one file held out from byte {self.cut:,} on"]
        if not_utf8:
            facts += [f"{_files(len(not_utf8), 'non-UTF-8')} read as plain bytes"]
        if self.skipped:
            facts += [f"{_files(len(self.skipped), 'binary')} left out"]
        if self.copies:
            facts += [f"{_files(len(self.copies), 'training')} left out that a held-out one equals"]
        return f"{self.name}: {', '.join(facts)}"

    def _paths(self, split: Split) -> tuple[Path, ...]:
        if split not in ("training", "heldout"):
            raise ValueError(f"split: expected 'training' or 'heldout', got {split!r}")
        return self.training if split == "training" else self.heldout

    def _in_both(self) -> set[Path]:
        return set(self.training) & set(self.heldout)


def standard_library_corpus() -> Corpus:
    """The source of the running Python's standard library, `HELDOUT_MODULES` held out.

    Without the library's own tests and without installed packages. Another Python is another corpus: its
    version is in the name, and `fingerprint` tells the rest.

    Raises:
        ValueError: this Python comes without its source, or with none of the modules to hold out.
    """
    root = Path(sysconfig.get_paths()["stdlib"]).resolve()
    sources = [path for path in regular_files(root, EXCLUDED_FOLDERS) if path.suffix == ".py" and probe(path)]
    heldout = tuple(path for path in sources if relative_name(path, root) in HELDOUT_MODULES)
    training = tuple(path for path in sources if path not in heldout)
    if not heldout or not training:
        raise ValueError(
            f"data: expected the standard library's source in {str(root)!r}, found {len(training)} modules "
            f"to train on and {len(heldout)} of the {len(HELDOUT_MODULES)} to hold out; "
            "give a folder of text instead"
        )
    name = f"python-{platform.python_version()}-standard-library"
    return Corpus(name=name, root=root, training=training, heldout=heldout)


def folder_corpus(path: str | os.PathLike[str]) -> Corpus:
    """Every text file below a folder: regular files without a NUL byte in their first `PROBE_BYTES`.

    Hidden files and folders are left out, symbolic links are not followed, empty files are skipped. A file is
    held out if a hash of its relative name falls into the lowest `HELDOUT_SHARE`, so that a file added later
    moves no other. Where that would hold out none, the file of the lowest hash is. Where it would hold out
    next to nothing of the text or most of it, and where there is a single file, the largest file is cut
    instead: about its last tenth is held out. Files that equal a held-out one are left out of training.

    Raises:
        ValueError: `path` is missing or not a folder, something in it cannot be read, it holds no text, or
            nothing but copies of one text.
    """
    root = _folder(path)
    texts, skipped = _texts(root)
    sizes = {text: text.stat().st_size for text in texts}
    chosen, cut = _heldout(texts, root), None
    share = sum(sizes[text] for text in chosen) / sum(sizes.values())
    if not LEAST_HELDOUT <= share <= MOST_HELDOUT:
        largest = max(texts, key=lambda text: (sizes[text], name_hash(text, root)))
        chosen, cut = {largest}, _cut(largest)
    heldout = tuple(text for text in texts if text in chosen)
    copies = _copies(texts, heldout)
    kept = [text for text in texts if text not in copies and (text not in chosen or cut is not None)]
    if not kept:
        raise ValueError(
            f"data: expected more than copies of one text in {str(root)!r}, got {len(texts)}; give more text"
        )
    return Corpus(
        name=root.name or str(root),
        root=root,
        training=tuple(kept),
        heldout=heldout,
        cut=cut,
        skipped=skipped,
        copies=copies,
    )


def _copies(texts: tuple[Path, ...], heldout: tuple[Path, ...]) -> tuple[Path, ...]:
    """Those of `texts` that hold the same as one of `heldout`, which is another file."""
    sizes = {path.stat().st_size for path in heldout}
    digests = {sha256_of(path) for path in heldout}
    others = (text for text in texts if text not in heldout and text.stat().st_size in sizes)
    return tuple(text for text in others if sha256_of(text) in digests)


def _folder(path: str | os.PathLike[str]) -> Path:
    # os.path, because pathlib's own errors do not say what to do
    root, given = Path(os.path.realpath(os.path.expanduser(path))), repr(str(path))
    if not os.path.exists(root):
        raise ValueError(
            f"data: expected a folder of text, got {given}, which cannot be found; check the path"
        )
    if not root.is_dir():
        raise ValueError(
            f"data: expected a folder of text, got the file {given}; put it into a folder of its own"
        )
    return root


def _texts(root: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The text files below `root` and the binary ones; empty files are in neither."""
    probes = {path: probe(path) for path in regular_files(root)}
    texts = tuple(path for path, start in probes.items() if start and b"\0" not in start)
    binary = tuple(path for path, start in probes.items() if b"\0" in start)
    if not texts:
        raise ValueError(
            f"data: expected text in {str(root)!r}, found none (empty files: "
            f"{len(probes) - len(binary)}, binary files: {len(binary)}); give a folder with regular files "
            f"without a NUL byte in their first {PROBE_BYTES} bytes (hidden files and links are left out)"
        )
    return texts, binary


def _heldout(texts: tuple[Path, ...], root: Path) -> set[Path]:
    """The files whose names say that they are held out, at least one."""
    by_hash = sorted(texts, key=lambda text: name_hash(text, root))
    limit = int(HELDOUT_SHARE * 2**32).to_bytes(4)
    below = sum(name_hash(text, root) < limit for text in texts)
    return set(by_hash[: max(1, below)])


def _cut(path: Path) -> int:
    """The byte that divides a file: at nine tenths, or after the last line end in the tenth before."""
    data = read_bytes(path)
    if len(data) < 2:
        raise ValueError(f"data: expected at least 2 bytes of text, got 1 in {str(path)!r}; give more text")
    nine_tenths = len(data) * 9 // 10
    line_end = data.rfind(b"\n", len(data) * 8 // 10, nine_tenths)
    return nine_tenths if line_end < 0 else line_end + 1


def _files(count: int, kind: str) -> str:
    return f"{count} {kind} file{'' if count == 1 else 's'}"
