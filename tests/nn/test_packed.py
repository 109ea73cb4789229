"""Where packed documents' tokens and blocks lie, and what a compressor makes of them."""

from itertools import pairwise

import pytest
import torch

from trisparse.nn.compressor import CompressorKind
from trisparse.nn.packed import packed_places

from .compressors import KINDS, SIZES, config_of, trained

# empty documents at both ends, some shorter than a block, one alone
BOUNDS = [[0, 0, 23, 24, 24, 40, 49, 49], [0, 1, 3, 6], [0, 0], [0, 49]]


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("sizes", SIZES)
def test_places_are_those_of_a_loop_over_documents(sizes: tuple[int, int, int], bounds: list[int]) -> None:
    """Guards against a document's positions or blocks that are counted from its neighbour's."""
    config = config_of(sizes)
    places = packed_places(torch.tensor(bounds, dtype=torch.int32), bounds[-1], config)
    positions, numbers, covered = [], [], []
    for start, stop in pairwise(bounds):
        positions += range(stop - start)
        for block in range(config.num_compressed(stop - start)):
            numbers.append(block)
            first = start + block * config.compress_stride
            covered.append(list(range(first, first + config.compress_block)))
    assert places.positions.tolist() == positions
    assert places.block_numbers.tolist() == numbers
    overlap = config.compress_block // config.compress_stride
    chunks = places.first_chunks[:, None] + torch.arange(overlap)
    assert places.chunk_tokens[chunks].flatten(1).tolist() == covered


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_compressed_as_if_alone(
    kind: CompressorKind, sizes: tuple[int, int, int], bounds: list[int]
) -> None:
    """Guards against blocks that reach into the next document, and against gradients that do."""
    compressor = trained(kind, 3, config_of(sizes))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, bounds[-1], 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    places = packed_places(torch.tensor(bounds, dtype=torch.int32), bounds[-1], compressor.config)
    actual = compressor(tokens, places)
    expected = torch.cat([compressor(tokens[:, start:stop]) for start, stop in pairwise(bounds)], dim=1)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad(out, tokens, upstream)[0] for out in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_places_are_on_the_device_of_the_bounds() -> None:
    """Guards against PyTorch's default device, which may be another."""
    bounds = torch.tensor([0, 5, 8], dtype=torch.int32)
    with torch.device("meta"):
        places = packed_places(bounds, 8, config_of((4, 2, 4)))
    tensors = [place for place in vars(places).values() if isinstance(place, torch.Tensor)]
    assert [tensor.device.type for tensor in tensors] == ["cpu"] * 5


@pytest.mark.parametrize("bounds", [[1, 8], [0, 6, 4, 8], [0, 9], [0, 5]])
def test_bounds_are_looked_at_on_every_device(bounds: list[int]) -> None:
    """Guards a GPU's bounds, which the check of the call does not read."""
    with pytest.raises(ValueError, match=r"^cu_seqlens: expected"):
        packed_places(torch.tensor(bounds, dtype=torch.int32), 8, config_of((4, 2, 4)))
