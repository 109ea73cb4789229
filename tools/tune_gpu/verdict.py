"""What the rows say of each entry of the tables: a tile that is faster over all that uses it, if any is."""

from collections.abc import Iterator

from tiles import TILE

from trisparse.report.rows import Rows

# what is faster by less may be chance
WORTH = 0.98

# kernel, shape, tokens
Use = tuple[str, str, str]
Times = dict[Use, tuple[float, float]]


def verdicts(rows: Rows) -> Iterator[str]:
    """A line for each table entry: the tile that takes least of the pinned one's time, over all its uses."""
    entries: dict[tuple[str, str], Rows] = {}
    for row in rows:
        entries.setdefault((row["table"], row["entry"]), []).append(row)
    for (table, entry), found in entries.items():
        yield f"{table} {entry}: {_best(found)}"


def _best(rows: Rows) -> str:
    uses = {_use(row) for row in rows}
    others = dict.fromkeys(_tile(row) for row in rows if row["pinned"] == "no")
    times = {tile: _times(rows, tile) for tile in others}
    # a tile that is not right everywhere, or was not tried everywhere yet, cannot replace the pinned one
    whole = {tile: _share(taken) for tile, taken in times.items() if taken.keys() == uses}
    partly = len(times) - len(whole)
    left = f"; {partly} others failed or were not tried in all of its uses" if partly else ""
    tile, share = min(whole.items(), key=lambda item: item[1], default=((), 1.0))
    if share >= WORTH:
        return f"the pinned tile stays, none of {len(whole)} others is faster by 2 %{left}"
    shares = ", ".join(
        f"{kernel} {shape} {own / pinned:.3f}" for (kernel, shape, _), (own, pinned) in times[tile].items()
    )
    return f"({', '.join(tile)}) takes {share:.3f} of the pinned tile's time: {shares}{left}"


def _use(row: dict[str, str]) -> Use:
    return row["kernel"], row["shape"], row["tokens"]


def _tile(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in TILE)


def _times(rows: Rows, tile: tuple[str, ...]) -> Times:
    """Milliseconds of the tile and of the pinned one, of each use in which it is right."""
    return {
        _use(row): (float(row["median_ms"]), float(row["pinned_ms"]))
        for row in rows
        if _tile(row) == tile and row["gate"] == "pass" and row["median_ms"]
    }


def _share(times: Times) -> float:
    return sum(own for own, _ in times.values()) / sum(pinned for _, pinned in times.values())
