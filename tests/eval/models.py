"""Models to measure: a tiny Llama with random weights, and fakes whose answers are known beforehand."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from trisparse.data.tokenizer import VOCAB_SIZE
from trisparse.models import TrisparseForCausalLM
from trisparse.models.presets import model_config


def tiny_llama(seed: int = 0, *, dropout: float = 0.0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        # far from uniform, so that a shifted label or a lost token changes the loss
        initializer_range=0.3,
        attention_dropout=dropout,
    )
    return LlamaForCausalLM(config).eval()


def tiny_trisparse(seed: int = 0) -> TrisparseForCausalLM:
    """Blocks so small that 30 tokens are sparse already."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    blocks = {"compress_block": 4, "compress_stride": 2, "select_block": 4, "num_selected": 4, "window": 4}
    config = model_config("tiny", **sizes, **{f"nsa_{name}": size for name, size in blocks.items()})
    return TrisparseForCausalLM(config).eval()


class Fake(nn.Module):
    """Called like a causal language model; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[int]] = []

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:  # noqa: ARG002
        self.asked += input_ids.tolist()
        return SimpleNamespace(logits=self.logits(input_ids))

    def logits(self, input_ids: Tensor) -> Tensor:
        raise NotImplementedError


class Uniform(Fake):
    """Every token is as likely as every other."""

    def logits(self, input_ids: Tensor) -> Tensor:
        return torch.zeros(*input_ids.shape, VOCAB_SIZE)


class Broken(Fake):
    """NaN for every token."""

    def logits(self, input_ids: Tensor) -> Tensor:
        return torch.full((*input_ids.shape, VOCAB_SIZE), torch.nan)


class LooksBack(Fake):
    """Goes on as the text did where its last 12 tokens stood before; knows nothing if they are new."""

    def logits(self, input_ids: Tensor) -> Tensor:
        logits = torch.zeros(*input_ids.shape, VOCAB_SIZE)
        for row, tokens in enumerate(input_ids.tolist()):
            text = bytes(tokens)
            # only the end is looked at by the tests that use this model
            for place in range(len(text) - 8, len(text)):
                earlier = text.find(text[place - 11 : place + 1])
                if 0 <= earlier < place - 11:
                    logits[row, place, text[earlier + 12]] = 5.0
        return logits
