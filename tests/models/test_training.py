"""Small trainings: the model can learn, and sparse attention without sparsity is full attention."""

import pytest
import torch

from trisparse.baselines.full_attention import FullAttention
from trisparse.config import SparseConfig
from trisparse.models import TrisparseForCausalLM
from trisparse.nn.attention import NativeSparseAttention
from trisparse.nn.rope import Rope

from .tiny import ids_of, tiny_config

TOKENS = 23
GROUPS, DIM = 2, 4
# two forced slots and four free ones: all six blocks of 23 tokens
EVERYTHING = SparseConfig(
    compress_block=4, compress_stride=2, select_block=4, num_selected=6, num_local=1, window=3
)


def layer_that_selects_everything() -> tuple[NativeSparseAttention, FullAttention]:
    """An NSA layer open in its selected branch alone, and full attention with the same weights."""
    torch.manual_seed(0)
    rope = Rope(dim=DIM)
    sparse = NativeSparseAttention(16, 4, GROUPS, DIM, config=EVERYTHING, rope=rope).double()
    full = FullAttention(16, 4, GROUPS, DIM, rope=rope).double()
    with torch.no_grad():
        sparse.gates.proj.weight.zero_()
        # sigmoid(-1000) is 0 and sigmoid(1000) is 1, to the last bit
        sparse.gates.proj.bias.copy_(torch.tensor([-1000.0, 1000.0, -1000.0]).repeat(4))
        rows = slice(GROUPS * DIM, 2 * GROUPS * DIM)
        full.q_proj.weight.copy_(sparse.q_proj.weight)
        full.k_proj.weight.copy_(sparse.k_proj.weight[rows])
        full.v_proj.weight.copy_(sparse.v_proj.weight[rows])
        full.o_proj.weight.copy_(sparse.o_proj.weight)
    return sparse, full


@pytest.mark.parametrize("cached", [False, True])
def test_selecting_every_block_equals_full_attention(cached: bool) -> None:
    """Guards the selected branch against the baseline it is compared with: one softmax over all tokens."""
    sparse, full = layer_that_selects_everything()
    hidden = torch.randn(2, TOKENS, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        expected = full(hidden)
        actual = sparse(hidden, cache=sparse.new_cache() if cached else None)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def test_one_block_less_is_not_full_attention() -> None:
    """Guards the test above against passing for any selection."""
    sparse, full = layer_that_selects_everything()
    sparse.config = SparseConfig(
        compress_block=4, compress_stride=2, select_block=4, num_selected=5, num_local=1, window=3
    )
    hidden = torch.randn(2, TOKENS, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    difference = (sparse(hidden) - full(hidden)).abs().amax(dim=(0, 2))
    # the sixth block begins at token 20
    assert difference[:20].max() < 1e-11
    assert difference[20:].min() > 1e-6


def test_training_curve_without_sparsity_equals_that_of_full_attention() -> None:
    """Guards gradients where outputs agree: the two layers must stay together for 30 steps."""
    curves = []
    hidden = torch.randn(2, TOKENS, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = torch.randn(2, TOKENS, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for layer in layer_that_selects_everything():
        weights = [layer.q_proj.weight, layer.k_proj.weight, layer.v_proj.weight, layer.o_proj.weight]
        optimizer, losses = torch.optim.SGD(weights, lr=0.5), []
        for _ in range(30):
            loss = (layer(hidden) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0] == pytest.approx(curves[1], rel=1e-9)
    assert curves[0][-1] < 0.99 * curves[0][0]


@pytest.mark.parametrize("compressor", ["mlp", "linear"])
def test_one_batch_can_be_learned_by_heart(compressor: str) -> None:
    """Guards training as a whole: a model that cannot overfit 40 random tokens has a broken gradient."""
    torch.manual_seed(0)
    config = tiny_config(hidden_size=32, intermediate_size=64, compressor=compressor)
    model, ids = TrisparseForCausalLM(config).train(), ids_of(2, 20)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(120):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # chance is ln 40 = 3.7
    assert losses[0] > 3.0
    assert losses[-1] < 0.02
