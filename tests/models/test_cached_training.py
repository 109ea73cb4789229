"""Caches and gradients: a forward with a cache is inference, and says so by having no gradient."""

from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from trisparse.models import TrisparseForCausalLM
from trisparse.models.presets import model_config


@pytest.fixture
def model() -> TrisparseForCausalLM:
    torch.manual_seed(0)
    config = model_config(
        "tiny", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, attention=["full", "nsa"]
    )
    return TrisparseForCausalLM(config)


def some_ids(tokens: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (2, tokens), generator=torch.Generator().manual_seed(0))


def test_evaluation_mode_with_gradients_reaches_every_parameter(model: TrisparseForCausalLM) -> None:
    """Guards against a default cache that silently cuts keys and values off from their gradients."""
    model.eval()
    output = model(some_ids())
    output.logits.square().sum().backward()
    assert output.past_key_values is None
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing


def test_a_cached_forward_has_no_gradient(model: TrisparseForCausalLM) -> None:
    """Guards against gradients that look right and lack what went through the cache."""
    model.eval()
    assert not model(some_ids(), use_cache=True).logits.requires_grad


def test_gradient_checkpointing_does_not_append_twice(model: TrisparseForCausalLM) -> None:
    """Guards against a recomputed block that writes its tokens into the cache again."""
    model.train()
    name = "activation_checkpointing_enable"
    (getattr(model, name, None) or model.gradient_checkpointing_enable)()
    cache = DynamicCache(config=model.config)
    model(some_ids(), past_key_values=cache)
    assert [layer.state.lengths for layer in cache.layers] == [[40, 40], [40, 40]]


def test_layers_out_of_step_are_refused(model: TrisparseForCausalLM) -> None:
    """Guards against wrong positions after somebody has cropped one layer alone."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(some_ids(40), past_key_values=cache)
        cache.layers[0].crop(-3)
        with pytest.raises(ValueError, match="^past_key_values: expected layers of equal lengths"):
            model(some_ids(1), past_key_values=cache)


def test_left_padded_rows_refuse_restarting_positions(model: TrisparseForCausalLM) -> None:
    """Guards against packed documents in a padded batch that silently read one another."""
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[0, :4] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        model(some_ids(), attention_mask=mask, position_ids=positions, use_cache=False)
        for row in (0, 1):
            restarting = positions.clone()
            restarting[row, 20:] -= positions[row, 20]
            with pytest.raises(ValueError, match="^position_ids"):
                model(some_ids(), attention_mask=mask, position_ids=restarting, use_cache=False)


@pytest.mark.parametrize("kind", ["mlp", "linear", "mean"])
def test_autocast_trains(kind: str) -> None:
    """Guards against compressed keys of another dtype than their queries under autocast."""
    config = model_config("tiny", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, compressor=kind)
    autocast_model = TrisparseForCausalLM(config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = autocast_model(some_ids(), labels=some_ids()).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_config_json_holds_no_layer_types(model: TrisparseForCausalLM, tmp_path: Path) -> None:
    """Guards against a file that transformers refuses when it reads it as a plain configuration."""
    from transformers import PreTrainedConfig

    model.config.save_pretrained(tmp_path)
    assert "layer_types" not in (tmp_path / "config.json").read_text()
    PreTrainedConfig.from_pretrained(tmp_path)
