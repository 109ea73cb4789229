"""Named model sizes: what `--preset` and `model_config` take."""

import difflib
from typing import Any

from trisparse.models.configuration import TrisparseConfig

_TINY_BLOCKS = {
    "nsa_compress_block": 16,
    "nsa_compress_stride": 8,
    "nsa_select_block": 32,
    "nsa_num_selected": 8,
    "nsa_window": 128,
}

# "tiny" trains on two CPU cores in minutes; its blocks shrink with its context to be sparse at 1024 tokens
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, **_TINY_BLOCKS},
    "small": {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "nsa_num_selected": 8,
        "nsa_window": 256,
    },
    "base": {
        "hidden_size": 1024,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_key_value_heads": 1,
        "max_position_embeddings": 8192,
    },
    "large": {
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
    },
}


def model_config(preset: str, **overrides: Any) -> TrisparseConfig:
    """The configuration of a preset with some fields replaced.

    Raises:
        ValueError: an unknown preset or field; the message names the nearest known one.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}; got {preset!r}")
    known = [name for name in TrisparseConfig.__annotations__ if not name.startswith("_")]
    for name in overrides:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"model.{name}: no such field of the model configuration{hint}")
    return TrisparseConfig(**(PRESETS[preset] | overrides))
