"""The configuration: what it accepts, refuses, saves and derives."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from trisparse.config import SparseConfig
from trisparse.models import TrisparseConfig, TrisparseForCausalLM
from trisparse.models.presets import PRESETS, model_config
from trisparse.nn.rope import Rope, Yarn

from .tiny import tiny_config

YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 0}, r"^vocab_size: expected at least 1, got 0"),
        ({"intermediate_size": 0}, r"^intermediate_size: expected at least 1, got 0"),
        ({"value_head_dim": 0}, r"^value_head_dim: expected at least 1, got 0"),
        (
            {"num_key_value_heads": 3},
            r"^num_key_value_heads: expected a divisor of num_attention_heads=4, got 3",
        ),
        ({"attention": "linear"}, r"^attention: expected nsa, full, gated_full; got 'linear'"),
        ({"attention": ["nsa", "ful"]}, r"^attention: expected .*got 'ful'"),
        ({"attention": ["nsa"]}, r"^attention: expected one name or num_hidden_layers=2 of them, got 1"),
        ({"compressor": "conv"}, r"^compressor: expected mlp, linear, mean; got 'conv'"),
        ({"compressed_rope": "last"}, r"^compressed_rope: expected block, none; got 'last'"),
        ({"nsa_window": 0}, r"^window: expected at least 1, got 0"),
        ({"nsa_compress_stride": 3}, r"^compress_stride: expected a divisor"),
        ({"head_dim": 5}, r"^dim: expected an even number"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, r"^rope_parameters: .*got 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, r"^rope_parameters: expected a factor for 'yarn'"),
        ({"rope_parameters": YARN | {"factor": "4"}}, r"^rope_parameters: expected a number for factor"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            r"^rope_parameters: expected partial_rotary_factor 1.0",
        ),
        ({"rope_parameters": YARN | {"truncate": False}}, r"^rope_parameters: expected truncate True"),
        ({"rope_parameters": YARN | {"mscale": 0.7}}, r"^rope_parameters: expected mscale None"),
        ({"rope_parameters": YARN | {"factor": float("nan")}}, r"^factor: expected at least 1"),
        ({"num_attention_heads": 0}, r"^num_attention_heads: expected at least 1, got 0"),
        ({"max_rollback": -1}, r"^max_rollback: expected at least 0, got -1"),
        ({"backend": "cuda"}, r"^backend: expected auto, reference, torch, cpu, triton; got 'cuda'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    """Guards against configurations that fail late, or train something else than was written."""
    with pytest.raises(ValueError, match=message):
        tiny_config(**settings)


def test_rope_theta_beside_the_other_fields_is_heeded(tmp_path: Path) -> None:
    """Guards against files in the older form, whose base of rotation silently became another."""
    assert tiny_config(rope_theta=5e5).rope() == Rope(dim=4, theta=5e5)
    assert tiny_config().rope() == Rope(dim=4, theta=1e4)
    fields = {key: YARN[key] for key in YARN if key != "rope_theta"}
    yarn = Yarn(factor=4.0, original_length=64)
    assert tiny_config(rope_theta=5e5, rope_scaling=fields).rope() == Rope(dim=4, theta=5e5, yarn=yarn)
    settings = tiny_config().to_dict()
    del settings["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(settings | {"rope_theta": 5e5}))
    assert AutoConfig.from_pretrained(tmp_path).rope() == Rope(dim=4, theta=5e5)


@pytest.mark.parametrize("attention", ["nssa", ["nsa", "nssa"]])
def test_attention_misspelled_later_is_refused(attention: str | list[str]) -> None:
    """Guards against a field changed after the check, for which full attention was built instead."""
    config = tiny_config()
    config.attention = attention
    with pytest.raises(ValueError, match="^attention: expected .*got 'nssa'"):
        TrisparseForCausalLM(config)


def test_saved_configuration_loads_equal(tmp_path: Path) -> None:
    """Guards every field on its way through config.json, YaRN and the list of layers included."""
    config = tiny_config(
        attention=["nsa", "gated_full"],
        rope_parameters=YARN,
        compressor="linear",
        shared_kv=True,
        value_head_dim=6,
        max_rollback=200,
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, TrisparseConfig)
    # where it was loaded from and by which version is no field of ours
    foreign = {name: loaded.to_dict()[name] for name in ("_name_or_path", "transformers_version")}
    assert loaded.to_dict() == config.to_dict() | foreign
    assert loaded.attention_of_layers() == ["nsa", "gated_full"]
    assert loaded.sparse_config() == config.sparse_config()
    assert loaded.rope() == Rope(dim=4, theta=5000.0, yarn=Yarn(factor=4.0, original_length=64))


def test_fields_become_the_sizes_of_the_attention() -> None:
    """Guards against a field that is accepted and dropped."""
    assert tiny_config().sparse_config() == SparseConfig(
        compress_block=4,
        compress_stride=2,
        select_block=4,
        num_selected=3,
        num_initial=1,
        num_local=1,
        window=5,
    )
    assert TrisparseConfig().sparse_config() == SparseConfig()
    assert tiny_config(hidden_size=48, intermediate_size=None).intermediate_size == 128
    assert tiny_config(hidden_size=48).head_dim == 12


@pytest.mark.parametrize("name", ["sliding_window", "attention_chunk_size"])
def test_no_field_makes_generation_cut_the_cache(name: str) -> None:
    """Guards against a name by which transformers would build sliding-window caches."""
    config = tiny_config()
    assert not hasattr(config, name)
    assert name not in config.to_dict()


def test_layer_types_are_ours_one_per_layer() -> None:
    """Guards the cache: transformers makes one layer of it per entry, of the class registered for it."""
    assert tiny_config(num_hidden_layers=3).layer_types == ["trisparse"] * 3
    assert tiny_config(attention="full").attention_of_layers() == ["full", "full"]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_legal_and_can_be_overridden(preset: str) -> None:
    """Guards against a preset that its own configuration refuses."""
    config = model_config(preset, nsa_window=17, attention="full")
    assert config.nsa_window == 17
    assert config.hidden_size == PRESETS[preset]["hidden_size"]
    assert config.attention_of_layers() == ["full"] * config.num_hidden_layers
    assert model_config(preset).attention == "nsa"


def test_unknown_preset_or_field_names_the_nearest() -> None:
    """Guards against a misspelled override that is silently ignored."""
    with pytest.raises(ValueError, match=r"^preset: expected one of tiny, .*got 'tin'"):
        model_config("tin")
    with pytest.raises(ValueError, match=r"^model\.nsa_windw: no such field.*did you mean 'nsa_window'\?"):
        model_config("tiny", nsa_windw=3)
