"""What stands between tensors and a kernel: dims, layouts, tiles, and the errors of a launch."""

import pytest
import torch
from triton.runtime.errors import OutOfResources

from trisparse.triton.launch import (
    Launch,
    Tile,
    assume_memory,
    heads_per_tile,
    padded,
    pinned,
    rowwise,
    split_dim,
)


@pytest.mark.parametrize(
    ("dim", "parts"),
    [(1, (16, 0)), (16, (16, 0)), (24, (32, 0)), (60, (64, 0)), (96, (64, 32)), (100, (128, 0))]
    + [(128, (128, 0)), (192, (128, 64)), (576, (512, 64))],
)
def test_dims_are_split_with_little_padding(dim, parts):
    """Guards against 192 padded to 256, and parts that a dot product refuses."""
    assert split_dim(dim) == parts


def test_every_dim_is_covered():
    """Guards against a split that drops the last dims."""
    for dim in range(1, 1025):
        first, second = split_dim(dim)
        assert dim <= first + second <= max(16, 2 * dim)
        assert first & (first - 1) == 0
        assert second & (second - 1) == 0
        assert second == 0 or second >= 16


@pytest.mark.parametrize(
    ("heads", "rows", "side_by_side"), [(1, 64, 1), (3, 64, 4), (16, 64, 16), (80, 64, 64)]
)
def test_heads_of_a_group_share_a_tile(heads, rows, side_by_side):
    """Guards against a tile that cannot hold the heads it was given."""
    assert heads_per_tile(heads, rows) == side_by_side


def test_only_rows_that_are_not_contiguous_are_copied():
    """Guards against a copy of every strided view, and against none of those that need one."""
    tensor = torch.randn(2, 3, 4, 8)
    heads_first = tensor.transpose(1, 2)
    assert rowwise(heads_first) is heads_first
    assert rowwise(tensor[..., ::2]).stride(-1) == 1
    column = torch.randn(2, 3, 4, 8)[..., :1].transpose(1, 3).transpose(1, 3)
    assert rowwise(column) is column


def test_tiles_follow_dims_and_memory_only(monkeypatch):
    """Guards against a tile that changes with a length or a batch, and with it the bits of a row."""
    monkeypatch.setattr("trisparse.triton.launch.INTERPRETED", False)
    narrow, wide = Tile(128, 64, 8, 2), Tile(32, 32, 8, 1)
    tiles = {name: ((512, narrow), (float("inf"), wide)) for name in ("large", "medium")}
    tiles["small"] = ((float("inf"), wide),)
    for batch, length in ((1, 1), (7, 5000)):
        key = torch.empty(batch, length, 2, 128, dtype=torch.bfloat16, device="meta")
        assert padded(128) * 2 * 2 == 512
        assert pinned(tiles, key, key) == narrow
        assert pinned(tiles, key.float(), key.float()) == wide
        with assume_memory("small"):
            assert pinned(tiles, key, key) == wide
        assert pinned(tiles, key, key) == narrow


def test_too_little_shared_memory_is_a_documented_limit():
    """Guards against Triton's own error, which names neither the argument nor the reason."""

    class Kernel:
        def __getitem__(self, grid):
            def start(**_):
                raise OutOfResources(200_000, 100_000, "shared memory")

            return start

    launch = Launch(
        kernel=Kernel(),
        programs=1,
        arguments={"query": torch.zeros(1)},
        constants={},
        tile=Tile(32, 32, 4, 1),
    )
    with pytest.raises(NotImplementedError, match="query: head dims too large .* shared memory"):
        launch.run()
