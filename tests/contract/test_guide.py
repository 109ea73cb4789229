"""What the guide says is true: its code runs, block after block."""

import re
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml

from trisparse.train.recipe import FREE_FIELDS, Recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "guide").glob("*.md"))


def test_there_is_a_guide() -> None:
    """Guards the test below from finding nothing to test."""
    assert ROOT / "docs" / "guide" / "inference.md" in PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs(page: Path) -> None:
    """Guards against examples that no longer run; the blocks of a page share their names."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    code = "\n".join(blocks)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_training_page_names_every_key_with_its_default() -> None:
    """Guards against a recipe that the page describes and nothing takes, and against keys nobody knows of."""
    text = (ROOT / "docs" / "guide" / "training.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| (.*?) ?\|", text, flags=re.MULTILINE))
    assert list(told) == [field.name for field in fields(Recipe)]
    for field in fields(Recipe):
        if field.default is not MISSING:
            assert yaml.safe_load(told[field.name].strip("`")) == field.default, field.name
    *_, last = text.partition("## Stopping and resuming")
    assert all(f"`{name}`" in last for name in FREE_FIELDS)
