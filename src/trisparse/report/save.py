"""Figures as files: equal rows give equal bytes."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trisparse.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# matplotlib would write its version and the time of day into the file
METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Creator": None, "Date": None}}
DOTS_PER_INCH = 200


def save_figure(figure: "Figure", path: Path | str) -> None:
    """Write `figure` as PNG or SVG, as the suffix says.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    write_whole(path, figure_bytes(figure, path.suffix.removeprefix(".")))


def figure_bytes(figure: "Figure", form: str) -> bytes:
    """The content of a `png` or `svg` file of `figure`, without date or version."""
    import matplotlib

    if form not in METADATA:
        raise ValueError(
            f"path: expected a name that ends in .png or .svg, got {form!r}; choose one of these"
        )
    buffer = io.BytesIO()
    # without a fixed salt the names inside an SVG are random
    with matplotlib.rc_context({"svg.hashsalt": "trisparse"}):
        figure.savefig(buffer, format=form, dpi=DOTS_PER_INCH, metadata=METADATA[form])
    return buffer.getvalue()
