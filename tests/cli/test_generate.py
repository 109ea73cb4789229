"""`trisparse generate`: its prompts, its numbers."""

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache, StaticCache

from trisparse.cli.arguments import placement
from trisparse.cli.stopwatch import Stopwatch
from trisparse.models import TrisparseConfig
from trisparse.models.cache import new_cache

from .conftest import Call


def test_numbers_are_those_of_the_run(call: Call, model_folder: Path) -> None:
    """Guards counts that are off by the prompt or by one, and bytes of another cache."""
    words = ("generate", str(model_folder), "--prompt", "spam " * 50, "--max-new-tokens", "12")
    code, out, _ = call(*words, "--temperature", "0", "--json")
    numbers = json.loads(out)
    assert code == 0
    assert numbers["prompt_tokens"] == 250
    assert 2 <= numbers["new_tokens"] <= 12
    # the last token was chosen and never read
    assert numbers["cached_tokens"] == 250 + numbers["new_tokens"] - 1
    held = numbers["cached_tokens"]
    # one group of 16 + 16 channels in fp32; blocks of 16 by 8, eight of 32 selected, a window of 128
    token = (16 + 16) * 4
    assert numbers["dense_bytes_read_per_token"] == token * held
    assert numbers["bytes_read_per_token"] == token * ((held - 16) // 8 + 1 + min(held, 8 * 32) + 128)
    # raw tokens, compressed ones, the ring of the window, the ring of the blocks
    assert numbers["cache_bytes"] == token * ((256 if held <= 256 else 320) + 64 + 192 + 128)
    assert numbers["prefill_tokens_per_second"] > 0
    assert numbers["decode_tokens_per_second"] == pytest.approx(
        1000 / numbers["decode_ms_per_token"], rel=0.01
    )
    assert numbers["backend"] in ("cpu", "torch")
    assert (numbers["instructions"] is None) == (numbers["backend"] == "torch")


def test_bytes_of_a_model_with_full_attention_in_one_layer(call: Call, tmp_path: Path) -> None:
    """Guards against layers that are all counted as sparse, and values as wide as keys."""
    from trisparse.data.tokenizer import byte_tokenizer
    from trisparse.models import TrisparseForCausalLM
    from trisparse.models.presets import model_config

    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "value_head_dim": 8}
    config = model_config("tiny", attention=["nsa", "gated_full", "nsa"], eos_token_id=None, **sizes)
    TrisparseForCausalLM(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    words = ("generate", str(tmp_path), "--prompt", "spam " * 200, "--tokens", "3", "--json")
    code, out, _ = call(*words)
    numbers = json.loads(out)
    assert code == 0
    assert numbers["cached_tokens"] == 1002
    token = (16 + 8) * 4
    assert numbers["dense_bytes_read_per_token"] == token * 3 * 1002
    assert numbers["bytes_read_per_token"] == token * (2 * (124 + 256 + 128) + 1002)


def test_weights_and_cache_are_of_the_dtype_asked_for(call: Call, model_folder: Path) -> None:
    """Guards a cache of half the size, and a model that is loaded as it was saved where nothing is asked."""
    words = ("generate", str(model_folder), "--tokens", "3", "--json", "--device", "cpu")
    saved, narrow = (
        json.loads(call(*words, *more)[1])["cache_bytes"] for more in ((), ("--dtype", "bfloat16"))
    )
    assert saved == 2 * narrow


@pytest.mark.parametrize(
    ("has_gpu", "device", "cache"), [(True, "cuda", StaticCache), (False, "cpu", DynamicCache)]
)
def test_a_gpu_is_taken_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, has_gpu: bool, device: str, cache: type
) -> None:
    """Guards text that a CPU writes beside an idle GPU, and steps on a GPU that are not captured."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert placement("auto", None) == {"device": device, "dtype": None}
    model = SimpleNamespace(config=TrisparseConfig(), device=torch.device(device))
    assert type(new_cache(model, 100)) is cache


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_last_line_says_how_fast_it_was(
    call: Call, model_folder: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Guards the one line of numbers that everyone reads: a speed, and what a token costs."""
    monkeypatch.setattr("sys.stdin", io.StringIO("spam\n"))
    words = ("--prompt", "spam\n") if verb == "generate" else ()
    code, _, err = call(verb, str(model_folder), *words, "--tokens", "5", "--temperature", "0")
    assert code == 0
    number = r"\d+\.\d"
    line = rf"\d tokens, {number} tokens/s; reads {number} MiB a token, full attention {number}"
    assert re.fullmatch(line, err.splitlines()[-1]), err


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
