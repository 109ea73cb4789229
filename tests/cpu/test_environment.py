"""The environment variables that the guide names are those that the code reads, and no others."""

import re
from pathlib import Path

from trisparse.cpu import build
from trisparse.cpu.instructions import FORCE

ROOM = Path(build.__file__).parent
GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "cpu.md"
# by name, or by the constant that holds it
READ = re.compile(r"(?:environ(?:\.get\(|\[)|getenv\()\s*(?:\"(\w+)\"|(\w+))")


def variables_in(text: str) -> set[str]:
    """The variables that Python or C++ in `text` reads."""
    return {name or {"FORCE": FORCE}[constant] for name, constant in READ.findall(text)}


def test_guide_names_every_variable_that_is_read() -> None:
    """Guards against a switch that nobody can know of, and against one that no longer does anything."""
    found = set()
    for path in ROOM.rglob("*"):
        if path.suffix in (".py", ".h", ".cpp"):
            found |= variables_in(path.read_text(encoding="utf-8"))
    named = re.findall(r"^\| `(\w+)` \|", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(named) == sorted(found)


def test_reader_sees_every_form() -> None:
    """Guards against a test that finds nothing because it looks for one spelling."""
    text = (
        'os.environ.get("A", "")\nos.environ["B"]\nos.getenv("C")\nstd::getenv("D")\nenviron.get(FORCE, "")'
    )
    assert variables_in(text) == {"A", "B", "C", "D", "TRISPARSE_CPU_INSTRUCTIONS"}
