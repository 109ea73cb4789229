"""`trisparse generate`: its prompts, its numbers."""

import json
from pathlib import Path

import pytest

from trisparse.cli.stopwatch import Stopwatch

from .conftest import Call


def test_numbers_are_those_of_the_run(call: Call, model_folder: Path) -> None:
    """Guards counts that are off by the prompt or by one, and bytes of another cache."""
    from trisparse.models import TrisparseConfig

    words = ("generate", str(model_folder), "--prompt", "spam " * 50, "--max-new-tokens", "12")
    code, out, _ = call(*words, "--temperature", "0", "--json")
    numbers = json.loads(out)
    assert code == 0
    assert numbers["prompt_tokens"] == 250
    assert 2 <= numbers["new_tokens"] <= 12
    # the last token was chosen and never read
    assert numbers["cached_tokens"] == 250 + numbers["new_tokens"] - 1
    config = TrisparseConfig.from_pretrained(model_folder)
    token = 2 * config.num_key_value_heads * config.head_dim * 4
    assert numbers["dense_bytes_read_per_token"] == token * numbers["cached_tokens"]
    assert 0 < numbers["bytes_read_per_token"] < 3 * numbers["dense_bytes_read_per_token"]
    assert numbers["cache_bytes"] > token * numbers["cached_tokens"]
    assert numbers["prefill_tokens_per_second"] > 0
    assert numbers["decode_tokens_per_second"] == pytest.approx(
        1000 / numbers["decode_ms_per_token"], rel=0.01
    )
    assert numbers["backend"] in ("cpu", "torch")
    assert (numbers["instructions"] is None) == (numbers["backend"] == "torch")


def test_stats_follow_the_text(call: Call, model_folder: Path, tmp_path: Path) -> None:
    """Guards a stdout that holds the text alone, and a prompt that comes from a file."""
    path = tmp_path / "prompt.txt"
    path.write_text("def grüße(", encoding="utf-8")
    words = ("generate", str(model_folder), "--prompt-file", str(path), "--tokens", "6", "--stats")
    code, out, err = call(*words)
    assert code == 0
    assert out.startswith("def grüße(")
    assert "prompt tokens: 12" in err
    for name in ("decode ms per token", "cache bytes", "bytes read per token", "backend", "instructions"):
        assert f"{name}: " in err


def test_prompt_file_that_is_no_text_is_refused(call: Call, model_folder: Path, tmp_path: Path) -> None:
    """Guards against a traceback, or another text than the file's."""
    path = tmp_path / "prompt.bin"
    path.write_bytes(b"abc\xff")
    code, _, err = call("generate", str(model_folder), "--prompt-file", str(path))
    assert code == 2
    assert "not UTF-8 at byte 3" in err


def test_stopwatch_tells_the_prompt_from_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a prefill that is counted as decoding."""
    times = iter([10.0, 14.0, 14.5, 15.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    watch = Stopwatch()
    assert (watch.new_tokens, watch.prefill_seconds, watch.decode_seconds) == (0, 0.0, None)
    for _ in range(4):
        watch.put(None)
    assert (watch.new_tokens, watch.prefill_seconds, watch.decode_seconds) == (3, 4.0, 0.5)


def test_prompt_that_is_no_text_is_refused(call: Call, model_folder: Path) -> None:
    code, _, err = call("generate", str(model_folder), "--prompt", "a\udcff")
    assert code == 2
    assert "prompt: expected UTF-8, got something else at character 1" in err
