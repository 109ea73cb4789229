"""The decode benchmark's rows: complete, drawable, and without times where the gate is red."""

from pathlib import Path

import pytest
import torch

from trisparse.bench import decode, decode_contender
from trisparse.bench.decode_case import COLD_BYTES, DecodeCase, make_caches
from trisparse.bench.table import append_rows
from trisparse.report import latency, speedup
from trisparse.report.measurement import TIMES
from trisparse.report.rows import read_rows

from .small import CONFIG, SIZES

FEW = {name: value for name, value in SIZES.items() if name != "samples"}


def test_rows_fit_the_columns_and_the_figures(tmp_path: Path):
    """The figures read what the benchmark writes, and the file holds what was measured."""
    seen: list[dict[str, str]] = []
    rows = decode.run([40, 100], batches=[1, 2], samples=2, on_row=seen.append, **FEW)
    assert seen == rows
    assert all(list(row) == decode.DECODE_COLUMNS for row in rows)
    names = [("sdpa", "dense", row) for row in ("cpu", "torch")]
    found = [tuple(row["backend"] for row in rows[at : at + 3]) for at in range(0, 12, 3)]
    assert all(each in names for each in found)
    assert [(row["batch"], row["tokens"]) for row in rows[::3]] == [
        ("1", "40"),
        ("1", "100"),
        ("2", "40"),
        ("2", "100"),
    ]
    assert {row["gate"] for row in rows} == {"pass"}
    assert rows[0]["form"] in decode_contender.FORMS
    assert len(latency.draw(rows).axes) == 1
    assert len(speedup.draw(rows).axes) == 1
    append_rows(tmp_path / "decode.csv", rows[:5], decode.DECODE_COLUMNS)
    append_rows(tmp_path / "decode.csv", rows[5:], decode.DECODE_COLUMNS)
    assert read_rows(tmp_path / "decode.csv") == rows


@pytest.mark.parametrize("new_tokens", [1, 3])
def test_wrong_results_get_red_rows_without_times(monkeypatch: pytest.MonkeyPatch, new_tokens: int):
    """The speed of a wrong result is no speed."""
    right = decode_contender.Sparse._run

    def scaled(self, cache, case):
        out, ids = right(self, cache, case)
        return out * 1.05, ids

    monkeypatch.setattr(decode_contender.Sparse, "_run", scaled)
    nothing = torch.zeros(1, new_tokens, 4, 24)
    monkeypatch.setattr(decode_contender.Dense, "attend", lambda *_: nothing)
    sdpa, dense, sparse = decode.run([64], samples=2, new_tokens=new_tokens, **FEW)
    assert [row["gate"] for row in (sdpa, dense, sparse)] == ["pass", "fail", "fail"]
    assert all(row[column] == "" for row in (dense, sparse) for column in TIMES)
    assert float(sparse["worst_ratio"]) > 1


def test_wrong_selection_is_red(monkeypatch: pytest.MonkeyPatch):
    """Guards the gate against results that are right for ids that are wrong."""
    right = decode_contender.sparse_decode

    def first_blocks(*arguments, **options):
        out, ids = right(*arguments, **options)
        return out, torch.arange(CONFIG.num_selected, dtype=torch.int32).expand_as(ids)

    monkeypatch.setattr(decode_contender, "sparse_decode", first_blocks)
    *_, sparse = decode.run([160], samples=1, **FEW)
    assert sparse["gate"] == "fail"


@pytest.mark.parametrize("form", decode_contender.FORMS)
@pytest.mark.parametrize("new_tokens", [1, 4])
def test_forms_of_full_attention_agree(form: str, new_tokens: int):
    """Guards against a baseline that is fast because it computes something else."""
    case = DecodeCase(tokens=50, batch=2, heads=6, groups=2, head_dim=8, value_dim=12, new_tokens=new_tokens)
    case = DecodeCase(**{**vars(case), "dtype": torch.float32})
    cache = make_caches(case, torch.device("cpu"))[0]
    assert decode_contender.Sdpa(form).worst_ratio(cache, case) <= 1.0


def test_what_is_read_is_the_papers_table():
    """Guards the bytes that bandwidths are made of."""
    lengths = (8192, 16384, 32768, 65536)
    read = [DecodeCase(tokens=tokens).sparse_tokens_read for tokens in lengths]
    # the last block of 32 tokens is complete only 16 tokens after the table's count
    assert [number + 1 for number in read] == [2048, 2560, 3584, 5632]
    case = DecodeCase(tokens=65536)
    assert case.bytes_of(65536) == 65536 * 4 * 256 * 2
    assert case.num_caches * case.bytes_of(case.sparse_tokens_read) >= COLD_BYTES


def test_caches_differ():
    """Guards against caches that share memory, or one cache taken again and again."""
    caches = make_caches(DecodeCase(tokens=64, dtype=torch.float32, heads=4, groups=2), torch.device("cpu"))
    assert len(caches) >= 2
    addresses = {cache.tokens[0].data_ptr() for cache in caches}
    assert len(addresses) == len(caches)
    assert not torch.equal(caches[0].tokens[0], caches[1].tokens[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples": 0}, "samples: expected at least 1, got 0"),
        ({"new_tokens": 65, "samples": 1}, "new_tokens: expected 1 .. 64, the tokens of a row, got 65"),
        ({"backend": "cuda", "samples": 1}, "backend: expected"),
    ],
)
def test_wrong_argument_is_named_before_anything_runs(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        decode.run([64], **{**FEW, **wrong})
