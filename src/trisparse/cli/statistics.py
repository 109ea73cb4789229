"""The numbers that `generate --stats` and `chat` show, and how they are written."""

from typing import Any

from trisparse.cli.stopwatch import Stopwatch

# tokens of a prompt that are read at once: what a prefill needs beside the cache grows with them
PREFILL_CHUNK = 2048


def statistics(model: Any, cache: Any, prompt_tokens: int, watch: Stopwatch) -> dict[str, Any]:
    """Speed, memory and backend of one answer; None where too few tokens came to tell.

    `prompt_tokens` are those that were prefilled, without what the cache held before.
    """
    from trisparse.models.footprint import footprint

    step = watch.decode_seconds
    cost = footprint(model.config, max(1, cache.get_seq_length()), model.dtype)
    return {
        "prompt_tokens": prompt_tokens,
        "new_tokens": watch.new_tokens,
        "prefill_tokens_per_second": _rate(prompt_tokens, watch.prefill_seconds),
        "decode_ms_per_token": None if step is None else round(step * 1000, 3),
        "decode_tokens_per_second": None if step is None else _rate(1, step),
        "cached_tokens": cache.get_seq_length(),
        "cache_bytes": sum(layer.state.nbytes() for layer in cache.layers if layer.state is not None),
        "bytes_read_per_token": cost.bytes_read,
        "dense_bytes_read_per_token": cost.dense_bytes_read,
        **_backend(model),
    }


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 2) if seconds > 0 else None


def _backend(model: Any) -> dict[str, str | None]:
    """What computes the sparse layers, and with which instructions where that is the CPU's kernels."""
    from trisparse.backends import choose, cpu_instructions

    name = choose(model.config.backend, model.device.type, model.dtype)
    return {"backend": name, "instructions": cpu_instructions(model.dtype) if name == "cpu" else None}


def summary(numbers: dict[str, Any]) -> str:
    """The numbers that matter most, in a line."""
    rate = numbers["decode_tokens_per_second"]
    read, dense = (numbers[f"{name}bytes_read_per_token"] / 2**20 for name in ("", "dense_"))
    speed = "" if rate is None else f", {rate:.1f} tokens/s"
    return f"{numbers['new_tokens']} tokens{speed}; reads {read:.1f} MiB a token, full attention {dense:.1f}"


def lines(numbers: dict[str, Any]) -> list[str]:
    """One fact a line, for people."""
    return [f"{name.replace('_', ' ')}: {_text(name, value)}" for name, value in numbers.items()]


def _text(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if "bytes" in name:
        return f"{value:,} ({value / 2**20:.2f} MiB)"
    return f"{value:,}" if isinstance(value, int) else str(value)
