"""The compressor phi: every block of tokens becomes one."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

from trisparse.config import SparseConfig
from trisparse.nn.compressor import Compressor, CompressorKind
from trisparse.reference.compress import compress_blocks

from .compressors import KINDS, SIZES, config_of, trained


def naive(compressor: Compressor, blocks: Tensor) -> Tensor:
    """phi of one block after the other: [B, C, l, G, D] -> [B, C, G, D]."""
    rows = []
    for block in blocks.movedim(3, 2).flatten(0, 2):
        if compressor.kind == "linear":
            rows.append(block.flatten() @ compressor.weight)
        elif compressor.kind == "mean":
            rows.append(block.mean(dim=0))
        else:
            inner = gelu((block + compressor.position).flatten() @ compressor.up + compressor.up_bias)
            rows.append(block.mean(dim=0) + compressor.down.weight @ inner + compressor.down.bias)
    batch, count, _, groups, dim = blocks.shape
    return torch.stack(rows).view(batch, count, groups, dim)


@pytest.mark.parametrize("length", [9, 16, 23])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_phi_of_every_unfolded_block(
    kind: CompressorKind, sizes: tuple[int, int, int], length: int
) -> None:
    """Guards the split of the projection into strides: a wrong shift, order or count of blocks."""
    config = config_of(sizes)
    compressor = trained(kind, 3, config)
    tokens = torch.randn(2, length, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = naive(compressor, compress_blocks(tokens, config))
    torch.testing.assert_close(compressor(tokens), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_is_the_mean_of_the_block_before_training(kind: CompressorKind) -> None:
    """Guards the start that every kind promises."""
    config = config_of((4, 2, 4))
    tokens = torch.randn(2, 11, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = compress_blocks(tokens, config).mean(dim=2)
    torch.testing.assert_close(Compressor(kind, 3, config).double()(tokens), expected)


@pytest.mark.parametrize(("kind", "matters"), [("mlp", True), ("linear", True), ("mean", False)])
def test_order_inside_a_block_matters_once_weights_moved(kind: CompressorKind, matters: bool) -> None:
    """Guards against a learned compressor that is blind to where in its block a token stands."""
    config = config_of((4, 2, 4))
    compressor = trained(kind, 3, config)
    tokens = torch.randn(1, 4, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    change = (compressor(tokens) - compressor(tokens.flip(1))).abs().max()
    assert (change > 1e-3) == matters


def test_position_inside_the_block_reaches_the_output_and_its_gradient() -> None:
    """Guards against a position table that is folded away or detached."""
    config = config_of((4, 2, 4))
    compressor = trained("mlp", 3, config)
    tokens = torch.randn(1, 8, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = compressor(tokens)
    before.square().sum().backward()
    assert compressor.position.grad is not None
    assert (compressor.position.grad.abs().amax(dim=1) > 0).all()
    compressor.position.data[2] += 1.0
    assert (compressor(tokens) - before).abs().max() > 1e-3


@pytest.mark.parametrize("length", [0, 1, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_fewer_tokens_than_a_block_give_no_block(kind: CompressorKind, length: int) -> None:
    """Guards short sequences and the first decode steps."""
    compressor = Compressor(kind, 3, config_of((8, 4, 8)))
    assert compressor(torch.randn(2, length, 2, 3)).shape == (2, 0, 2, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind: CompressorKind) -> None:
    """Guards the gradient through the overlapping blocks, for the tokens and every weight."""
    config = config_of((4, 2, 4))
    compressor = trained(kind, 2, config)
    names = [name for name, _ in compressor.named_parameters()]
    tokens = torch.randn(1, 7, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def run(tokens: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(compressor, dict(zip(names, weights, strict=True)), (tokens,))

    leaves = [x.detach().requires_grad_() for x in (tokens, *compressor.parameters())]
    assert torch.autograd.gradcheck(run, leaves)


def test_unknown_kind_is_refused() -> None:
    """Guards against a misspelled kind that falls back to another."""
    with pytest.raises(ValueError, match=r"^compressor: expected 'mlp', 'linear' or 'mean', got 'conv'"):
        Compressor("conv", 3, SparseConfig())  # type: ignore[arg-type]
