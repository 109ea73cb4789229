"""The program of a decode step, on a device without memory: whatever reads a number from it there fails."""

import pytest
import torch
from transformers import StaticCache

from trisparse import backends, decode
from trisparse.models import TokenStep, TrisparseConfig, TrisparseForCausalLM
from trisparse.triton.launch import Launch

KINDS = {
    "nsa": {},
    "shared": {"shared_kv": True},
    "unrotated": {"compressed_rope": "none"},
    "mixed": {"attention": ["nsa", "full"]},
}


# of each sparse layer, in the order in which they follow from one another
LAUNCHES = ("compressed", "scores", "topn", "tokens", "join")


class Untouchable(list):
    """Lengths that nobody may look at."""

    def _refuse(self, *_):
        raise AssertionError("the program looked at lengths on the host")

    __getitem__ = __iter__ = __len__ = __eq__ = __contains__ = _refuse


@pytest.mark.parametrize("kind", KINDS)
def test_the_program_is_the_same_for_all_lengths(kind, monkeypatch):
    """Guards against a length on the host, or a synchronisation, that a CUDA graph would freeze or refuse."""
    monkeypatch.setattr(backends, "choose", lambda *_: "triton")
    # neither knows what to do with tensors without data
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(decode, "_check_shapes", lambda *_: None)
    launched = []
    monkeypatch.setattr(Launch, "run", lambda self: launched.append(self.kernel))
    config = TrisparseConfig(num_hidden_layers=2, hidden_size=256, num_attention_heads=16, **KINDS[kind])
    with torch.device("meta"):
        model = TrisparseForCausalLM(config).eval()
        cache = StaticCache(config=config, max_cache_len=1024)
        with torch.no_grad():
            model(torch.zeros(2, 60, dtype=torch.int64), past_key_values=cache)
    step = TokenStep(model, cache)
    step(torch.zeros(2, 1, dtype=torch.int64, device="meta"))
    for state in step._states:
        monkeypatch.setattr(state, "lengths", Untouchable())
    launched.clear()
    assert step._program().shape == (2, config.vocab_size)
    sparse_layers = 2 if kind != "mixed" else 1
    assert [kernel.__name__ for kernel in launched] == [
        f"decode_{name}_kernel" for name in LAUNCHES
    ] * sparse_layers
