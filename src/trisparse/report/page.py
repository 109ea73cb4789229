"""One HTML page with figures, explanations, tables and samples; it needs no other file and no network."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from trisparse.files import write_whole
from trisparse.report.rows import Rows, distinct
from trisparse.report.save import figure_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("page.css")

# what a cell says when a check was not passed
FAILED = ("fail", "failed")


@dataclass(frozen=True, kw_only=True)
class Section:
    """One heading and what stands below it, in this order; only the title is a must.

    Attributes:
        title: the heading.
        figure: drawn from rows; embedded in the page.
        text: plain text; a blank line starts a new paragraph.
        rows: a small table, one column per key.
        code: text whose spaces and line breaks matter, as a generated sample.
    """

    title: str
    figure: "Figure | None" = None
    text: str = ""
    rows: Rows | None = None
    code: str | None = None


def write_report(
    path: Path | str, title: str, lead: str, sections: Sequence[Section], table: Rows, footer: dict[str, str]
) -> None:
    """Write the page in one step: a reader never sees half of it.

    Args:
        path: where the page goes; an older page is replaced.
        title: heading of the page and name of the browser's tab.
        lead: a paragraph or two that say what was done and what came out.
        sections: in the order of reading.
        table: the summary at the top; cells that say `failed` are marked red. May be empty.
        footer: what the numbers depend on (versions, commit, device), name to value.
    """
    write_whole(Path(path), _page(title, lead, sections, table, footer).encode())


def _page(title: str, lead: str, sections: Sequence[Section], table: Rows, footer: dict[str, str]) -> str:
    parts = [
        f"<header><h1>{escape(title)}</h1>{_paragraphs(lead, 'lead')}</header>",
        _table(table),
        _contents(sections),
        *[_section(place, section) for place, section in enumerate(sections, start=1)],
        _footer(footer),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _contents(sections: Sequence[Section]) -> str:
    if len(sections) < 4:
        return ""
    links = [
        f'<li><a href="#s{place}">{escape(s.title)}</a></li>' for place, s in enumerate(sections, start=1)
    ]
    return f'<nav aria-label="Contents"><ol>{"".join(links)}</ol></nav>'


def _section(place: int, section: Section) -> str:
    parts = [
        f"<h2>{escape(section.title)}</h2>",
        _figure(section),
        "" if section.figure else _paragraphs(section.text),
        _table(section.rows or []),
        f"<pre>{escape(section.code)}</pre>" if section.code else "",
    ]
    return f'<section id="s{place}">\n' + "\n".join(part for part in parts if part) + "\n</section>"


def _figure(section: Section) -> str:
    if section.figure is None:
        return ""
    # an image of its own, because two drawings inlined in one page would share the names of their parts
    drawing = base64.b64encode(figure_bytes(section.figure, "svg")).decode()
    image = f'<img alt="{escape(section.title)}" src="data:image/svg+xml;base64,{drawing}">'
    caption = f"<figcaption>{_paragraphs(section.text)}</figcaption>"
    return f'<figure><div class="card">{image}</div>{caption}</figure>'


def _paragraphs(text: str, name: str = "") -> str:
    start = f'<p class="{name}">' if name else "<p>"
    return "".join(f"{start}{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _table(rows: Rows) -> str:
    if not rows:
        return ""
    columns = distinct(column for row in rows for column in row)
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = ["<tr>" + "".join(_cell(row.get(column, "")) for column in columns) + "</tr>" for row in rows]
    body = "".join(lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: str) -> str:
    if value in FAILED:
        return f'<td class="failed">{escape(value)}</td>'
    # a number and its unit stay on one line
    return f'<td class="number">{escape(value)}</td>' if value[:1].isdigit() else f"<td>{escape(value)}</td>"


def _footer(footer: dict[str, str]) -> str:
    pairs = [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in footer.items()]
    return f"<footer><dl>{''.join(pairs)}</dl></footer>" if pairs else ""
