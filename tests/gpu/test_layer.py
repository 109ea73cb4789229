"""The layer and a language model on a GPU: however the tokens arrive, the rows are those of the whole."""

from itertools import pairwise

import pytest
import torch
from transformers import StaticCache

from trisparse import SparseConfig
from trisparse.models import TokenStep, TrisparseConfig, TrisparseForCausalLM
from trisparse.nn.attention import NativeSparseAttention
from trisparse.nn.rope import Rope

from .device import DEVICE, HAS_GPU, needs_gpu, pick

TOKENS = pick(700, 90)
HIDDEN = 64
SMALL = SparseConfig(
    compress_block=16, compress_stride=8, select_block=16, num_selected=4, num_local=1, window=40
)
LAYERS = {
    "paper": {},
    "shared": {"shared_kv": True},
    "unrotated": {"compressed_rope": "none"},
    "small blocks": {"config": SMALL},
}
# where the sequence is cut: one by one, within a block, after a prefill, and into few
CUTS = {
    "token by token": [TOKENS - 40, *range(TOKENS - 39, TOKENS)],
    "sevens": list(range(7, TOKENS, 7)),
    "after a prefill": [TOKENS // 2, *range(TOKENS // 2 + 5, TOKENS, 5)],
    "two halves": [TOKENS // 2],
}


def make_layer(name, dtype=torch.float32):
    torch.manual_seed(0)
    layer = NativeSparseAttention(
        HIDDEN, 8, 2, 16, **{"config": SparseConfig(), "rope": Rope(dim=16)} | LAYERS[name]
    )
    for parameter in layer.parameters():
        # random selections and gates, and a compressor that is no mean any more
        parameter.data += 0.1 * torch.randn_like(parameter)
    return layer.to(DEVICE, dtype)


def hidden_of(batch, tokens=TOKENS, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, tokens, HIDDEN, generator=generator).to(DEVICE, dtype)


def in_chunks(layer, hidden, cuts, cache=None):
    cache = layer.new_cache() if cache is None else cache
    bounds = [0, *cuts, hidden.shape[1]]
    return torch.cat([layer(hidden[:, a:b], cache=cache) for a, b in pairwise(bounds)], dim=1)


def assert_near(found, wanted):
    """Another order of fp32 sums: scores that agree to 6 digits choose the same blocks here."""
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_chunks_give_the_rows_of_the_whole(name, cuts):
    """Guards decode kernels against prefill kernels: positions, the tail of the compressor, the ring."""
    layer, hidden = make_layer(name), hidden_of(2)
    assert_near(in_chunks(layer, hidden, CUTS[cuts]), layer(hidden))


@torch.no_grad()
def test_cache_can_be_cropped_reordered_and_used_again():
    """Guards against state on the device that a crop, a beam or another prompt leaves as it was."""
    layer, hidden = make_layer("paper"), hidden_of(3)
    whole, cache = layer(hidden), layer.new_cache()
    in_chunks(layer, hidden[:, : TOKENS - 8], [TOKENS - 20], cache)
    cache.crop(TOKENS - 30)
    order = [2, 0, 0]
    cache.reorder(order)
    found = in_chunks(layer, hidden[order, TOKENS - 30 :], [1, 2, 9], cache)
    assert_near(found, whole[order, TOKENS - 30 :])
    cache.reset()
    assert_near(in_chunks(layer, hidden[:1], [5], cache), whole[:1])


def test_gradient_reaches_every_parameter_in_bf16():
    """Guards against an autograd path that only the CPU has."""
    layer, hidden = make_layer("paper", torch.bfloat16), hidden_of(2, dtype=torch.bfloat16)
    layer(hidden).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def make_model(**others):
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "eos_token_id": None, "pad_token_id": 0}
    model = TrisparseForCausalLM(TrisparseConfig(**(sizes | heads | others))).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(DEVICE)


def prompt_of(batch, tokens):
    return torch.randint(1, 96, (batch, tokens), generator=torch.Generator().manual_seed(2)).to(DEVICE)


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"prefill_chunk_size": 64}, {"cache_implementation": "static"}], ids=str
)
def test_generated_tokens_are_the_best_of_the_whole_sequence(options):
    """Guards `generate` on a GPU: each new token is the likeliest, or as good as that, without any cache."""
    model, prompt = make_model(), prompt_of(2, TOKENS - 30)
    tokens = model.generate(prompt, max_new_tokens=24, do_sample=False, **options)
    logits = model(tokens[:, :-1]).logits[:, prompt.shape[1] - 1 :]
    chosen = logits.gather(2, tokens[:, prompt.shape[1] :, None])[..., 0]
    assert (chosen >= logits.amax(dim=-1) - 1e-3 * logits.abs().amax()).all()


@needs_gpu
@torch.no_grad()
def test_generate_replays_a_graph_where_the_cache_is_static(monkeypatch):
    """Guards against steps that start each kernel anew, and give the same tokens slowly."""
    replays, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(1), replay(graph)))
    make_model().generate(prompt_of(2, 40), max_new_tokens=9, do_sample=False, cache_implementation="static")
    assert len(replays) == 8


@torch.no_grad()
@pytest.mark.parametrize("attention", ["nsa", ["nsa", "full"]], ids=str)
def test_steps_of_a_graph_equal_the_whole_sequence(attention):
    """Guards against a length, or an address, that the captured graph has kept from another step."""
    model, tokens = make_model(attention=attention), prompt_of(2, TOKENS)
    wanted, prompt = model(tokens, use_cache=False).logits, TOKENS - 40
    cache = StaticCache(config=model.config, max_cache_len=TOKENS)
    model(tokens[:, :prompt], past_key_values=cache)
    step = TokenStep(model, cache)
    for place in range(prompt, TOKENS - 10):
        assert_near(step(tokens[:, place, None]), wanted[:, place])
    cache.crop(-7)
    cache.reorder_cache(torch.tensor([1, 0], device=DEVICE))
    for place in range(TOKENS - 17, TOKENS):
        assert_near(step(tokens[:, place, None].flip(0)), wanted[:, place].flip(0))


def test_three_steps_of_training_lower_the_loss():
    """Guards the whole way of a gradient in bf16 on a GPU, as `trisparse train` goes it."""
    model, tokens = make_model().to(torch.bfloat16), prompt_of(2, TOKENS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@needs_gpu
@torch.no_grad()
def test_layer_uses_the_kernels():
    """Guards against a GPU run that took the slow backend: it launches kernels by our names."""
    assert HAS_GPU
    layer, hidden = make_layer("small blocks", torch.bfloat16), hidden_of(1, dtype=torch.bfloat16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        in_chunks(layer, hidden, [TOKENS - 1])
        torch.cuda.synchronize()
    names = {event.key for event in profile.key_averages()}
    for kernel in ("topn_kernel", "selected", "decode_tokens_kernel", "decode_join_kernel"):
        assert any(kernel in name for name in names), (kernel, sorted(names))
