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
        cut: None; or, if one single file makes both splits, the byte at which its held-out part begins.
        skipped: the files left out because they are binary.

    Every method that reads raises `ValueError` with the file's name if a file cannot be read.

    Raises:
        ValueError: a file is in both splits and there is no `cut`.
    """

    name: str
    root: Path
    training: tuple[Path, ...]
    heldout: tuple[Path, ...]
    cut: int | None = None
    skipped: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        both = sorted(set(self.training) & set(self.heldout))
        if both and self.cut is None:
            raise ValueError(
                f"heldout: expected files that are not in training, got {str(both[0])!r} in both"
            )

    def documents(self, split: Split) -> Iterator[bytes]:
        """The contents of the split's files in order, those of empty files left out."""
        for path in self._paths(split):
            document = self._part(split, read_bytes(path))
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
            facts += [f"one file, held out from byte {self.cut:,} on"]
        if not_utf8:
            facts += [f"{_files(len(not_utf8), 'non-UTF-8')} read as plain bytes"]
        if self.skipped:
            facts += [f"{_files(len(self.skipped), 'binary')} left out"]
        return f"{self.name}: {', '.join(facts)}"

    def _paths(self, split: Split) -> tuple[Path, ...]:
        if split not in ("training", "heldout"):
            raise ValueError(f"split: expected 'training' or 'heldout', got {split!r}")
        return self.training if split == "training" else self.heldout

    def _part(self, split: Split, data: bytes) -> bytes:
        if self.cut is None:
            return data
        return data[: self.cut] if split == "training" else data[self.cut :]


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
    moves no other. Where that would leave a split empty, the file of the lowest hash is held out, or the file
    of the highest is trained on. A folder with a single text file is cut: about its last tenth is held out.

    Raises:
        ValueError: `path` is missing or not a folder, something in it cannot be read, or it holds no text.
    """
    root = _folder(path)
    texts, skipped = _texts(root)
    name = root.name or str(root)
    if len(texts) == 1:
        return Corpus(
            name=name, root=root, training=texts, heldout=texts, cut=_cut(texts[0]), skipped=skipped
        )
    chosen = _heldout(texts, root)
    training = tuple(text for text in texts if text not in chosen)
    heldout = tuple(text for text in texts if text in chosen)
    return Corpus(name=name, root=root, training=training, heldout=heldout, skipped=skipped)


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
    """The held-out ones of at least two files: at least one, never all."""
    by_hash = sorted(texts, key=lambda text: name_hash(text, root))
    limit = int(HELDOUT_SHARE * 2**32).to_bytes(4)
    below = sum(name_hash(text, root) < limit for text in texts)
    return set(by_hash[: min(max(below, 1), len(texts) - 1)])


def _cut(path: Path) -> int:
    """The byte that divides a single file: at nine tenths, or after the last line end in the tenth before."""
    data = read_bytes(path)
    if len(data) < 2:
        raise ValueError(f"data: expected at least 2 bytes of text, got 1 in {str(path)!r}; give more text")
    nine_tenths = len(data) * 9 // 10
    line_end = data.rfind(b"\n", len(data) * 8 // 10, nine_tenths)
    return nine_tenths if line_end < 0 else line_end + 1


def _files(count: int, kind: str) -> str:
    return f"{count} {kind} file{'' if count == 1 else 's'}"
