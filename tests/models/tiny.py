"""Language models with such small blocks that 20 tokens are sparse, and weights far from their start."""

from typing import Any

import torch
from torch import Tensor

from trisparse.models import TrisparseConfig, TrisparseForCausalLM

VOCABULARY = 40


def tiny_config(**others: Any) -> TrisparseConfig:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "nsa_compress_block": 4,
        "nsa_compress_stride": 2,
        "nsa_select_block": 4,
        "nsa_num_selected": 3,
        "nsa_num_local": 1,
        "nsa_window": 5,
        # no text ends by chance
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    return TrisparseConfig(**(settings | others))


def tiny_model(seed: int = 0, **others: Any) -> TrisparseForCausalLM:
    """A model in fp32 and eval mode; every weight differs from what initialisation would give it."""
    torch.manual_seed(seed)
    model = TrisparseForCausalLM(tiny_config(**others)).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def ids_of(batch: int, tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (batch, tokens), generator=generator)
