"""The page: whole, self-contained, and safe to open whatever a model has written into it."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from trisparse.report.gates import draw
from trisparse.report.page import Section, write_report

from .rows import gate_rows

HOSTILE = "<script>alert('x')</script> & \"quotes\""
FOOTER = {"commit": "0123abc", "device": "made-up CPU"}
TABLE = [{"case": "forward", "NSA": "80 ms"}, {"case": "backward", "NSA": "failed"}]


class Outline(HTMLParser):
    """Tags, links and text of a page; fails on a tag that is not closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(path: Path, sections: list[Section], **other: object) -> str:
    write_report(
        path, **{"title": "T", "lead": "L", "sections": sections, "table": TABLE, "footer": FOOTER, **other}
    )
    return path.read_text(encoding="utf-8")


def outline(text: str) -> Outline:
    parsed = Outline()
    parsed.feed(text)
    assert parsed.open == []
    return parsed


@pytest.fixture
def full(tmp_path: Path) -> str:
    sections = [
        Section(title="Gates", figure=draw(gate_rows()), text="First.\n\nSecond.", rows=TABLE),
        Section(title="Sample", text="What it wrote.", code="def f():\n    return 1"),
    ]
    return page(tmp_path / "report.html", sections)


def test_sections_and_their_parts_are_there(full: str):
    outline(full)
    assert "<h2>Gates</h2>" in full
    assert "<p>First.</p><p>Second.</p>" in full
    assert "<pre>def f():\n    return 1</pre>" in full
    assert "<dt>commit</dt><dd>0123abc</dd>" in full


def test_failed_cell_is_marked(full: str):
    assert '<td class="failed">failed</td>' in full


def test_page_needs_no_network(full: str):
    """A report is mailed and archived: it must be whole without anything beside it."""
    tags = outline(full).tags
    addresses = [
        value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert len(addresses) == 1
    assert all(address and re.match(r"data:image/svg\+xml;base64,|#", address) for address in addresses)
    assert {"script", "link", "iframe"}.isdisjoint(tag for tag, _ in tags)
    assert "url(" not in full
    assert "@import" not in full


def test_everything_given_is_escaped(tmp_path: Path):
    """Generated text is anything at all, and a page opened from disk must not run it."""
    section = Section(
        title=HOSTILE, figure=draw(gate_rows()), text=HOSTILE, rows=[{HOSTILE: HOSTILE}], code=HOSTILE
    )
    text = page(
        tmp_path / "report.html",
        [section] * 4,
        title=HOSTILE,
        lead=HOSTILE,
        table=[{HOSTILE: HOSTILE}],
        footer={HOSTILE: HOSTILE},
    )
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    outline(text)


def test_many_sections_get_contents(tmp_path: Path):
    text = page(tmp_path / "report.html", [Section(title=f"Part {number}") for number in range(4)])
    places = [attributes["href"] for tag, attributes in outline(text).tags if tag == "a"]
    assert places == ["#s1", "#s2", "#s3", "#s4"]
    assert all(f'<section id="{place[1:]}">' in text for place in places if place)


def test_page_that_cannot_be_made_leaves_the_old_one(tmp_path: Path):
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(AttributeError):
        page(path, [Section(title="Broken", figure="no figure")])  # type: ignore[arg-type]
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]
