"""What the README says is true: its code runs, its files exist, its numbers are those of the tables."""

import csv
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"


def rows_of(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_example_runs_and_decodes_what_the_whole_gives() -> None:
    """Guards against an example that no longer runs, or whose claim does not hold."""
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (difference,) = re.findall(r"tensor\(([\d.e+-]+)", done.stdout)
    assert float(difference) < 1e-5


def test_every_path_named_exists() -> None:
    """Guards against a file map of files that were moved."""
    folder = "src/trisparse/"
    for line in README.splitlines():
        if line.startswith(f"| `{folder}"):
            for name in re.findall(r"`([\w./]+)`", line.split("|")[1]):
                assert (ROOT / name).exists() or (ROOT / folder / name).exists(), name
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / picture).is_file(), picture


def test_every_time_is_that_of_the_table() -> None:
    """Guards against numbers that nobody measured."""
    times = {
        (row["direction"], row["backend"], row["tokens"]): float(row["median_ms"])
        for row in rows_of("attention.csv")
        if row["gate"] == "pass"
    }
    found = re.findall(
        r"^\| (forward|backward) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+)x \|$", README, re.MULTILINE
    )
    assert len(found) == len(times) // 2
    for direction, tokens, full, sparse, ratio in found:
        expected_full, expected_sparse = times[direction, "sdpa", tokens], times[direction, "cpu", tokens]
        assert f"{expected_full:.1f}" == full
        assert f"{expected_sparse:.1f}" == sparse
        assert f"{expected_full / expected_sparse:.2f}" == ratio


def test_every_ratio_is_that_of_its_table() -> None:
    """Guards against numbers that nobody measured."""
    (head,) = re.findall(r"^\| table \| dtype \| \|([\d |]+)\|$", README, re.MULTILINE)
    found = re.findall(
        r"^\| `(\w+\.csv)` \| (\w+) \| (\w+)(?:, (\d+) rows?)? \|(.*)\|$", README, re.MULTILINE
    )
    assert len(found) > 10
    for name, dtype, direction, batch, cells in found:
        decodes = direction in ("decode", "dense")
        other = "dense" if direction == "dense" else "sdpa"
        wanted = {
            "dtype": dtype,
            "batch": batch or "1",
            "gate": "pass",
            "head_dim": "128",
            "value_dim": "128",
        }
        wanted |= {"direction": "decode" if decodes else direction}
        wanted |= {"heads": "64", "groups": "4"} if decodes else {"heads": "16", "groups": "1"}
        times: dict[tuple[str, str], float] = {}
        for row in rows_of(name):
            if wanted.items() <= row.items():
                assert (row["backend"], row["tokens"]) not in times
                times[row["backend"], row["tokens"]] = float(row["median_ms"])
        for tokens, cell in zip(head.split("|"), cells.split("|"), strict=True):
            if cell.strip():
                full, sparse = times[other, tokens.strip()], times["cpu", tokens.strip()]
                assert f"{full / sparse:.2f}" == cell.strip(), (name, direction, tokens)


def test_every_decode_step_is_that_of_the_table() -> None:
    """Guards against numbers that nobody measured."""
    times = {
        (row["backend"], row["tokens"]): float(row["median_ms"])
        for row in rows_of("decode.csv")
        if row["gate"] == "pass" and row["batch"] == "1" and row["direction"] == "decode"
    }
    cell = r"([\d.]+)x? \|"
    found = re.findall(rf"^\| (\d+) \| {cell} {cell} {cell} {cell} {cell}$", README, re.MULTILINE)
    assert len(found) == len(times) // 3
    for tokens, full, dense, sparse, *ratios in found:
        expected = [times[backend, tokens] for backend in ("sdpa", "dense", "cpu")]
        assert [f"{time:.2f}" for time in expected] == [full, dense, sparse]
        assert [f"{time / expected[2]:.2f}" for time in expected[:2]] == ratios


def test_every_loss_is_that_of_the_table() -> None:
    """Guards against a comparison of models that nobody trained."""
    final = {row["attention"]: row for row in rows_of("loss.csv") if row["split"] == "heldout"}
    for row in final.values():
        assert f"{float(row['bits_per_byte']):.3f}" in README
    assert f"{float(final['nsa']['unigram_bits_per_byte']):.3f}" in README
