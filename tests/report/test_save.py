"""Files of figures: equal rows, equal bytes; a failed write leaves what was there."""

from pathlib import Path

import pytest

from trisparse import files
from trisparse.report.gates import draw
from trisparse.report.save import figure_bytes, save_figure

from .rows import gate_rows


@pytest.mark.parametrize("form", ["png", "svg"])
def test_equal_rows_give_equal_bytes(form: str):
    """A date in the file would make every run of the benchmarks look like a change."""
    first, second = (figure_bytes(draw(gate_rows()), form) for _ in range(2))
    assert first == second
    assert b"matplotlib.org" not in first
    assert b"<dc:date>" not in first


def test_suffix_says_the_form(tmp_path: Path):
    save_figure(draw(gate_rows()), tmp_path / "new" / "gates.png")
    assert (tmp_path / "new" / "gates.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"^path: expected a name that ends in \.png or \.svg, got 'pdf'"):
        save_figure(draw(gate_rows()), tmp_path / "gates.pdf")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str):
    path = tmp_path / "report.html"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
