"""Block sizes: what is refused, and that they cross an operator schema unchanged."""

import pytest
import torch

from trisparse import SparseConfig

CONFIG = SparseConfig(
    compress_block=4, compress_stride=2, select_block=8, num_selected=2, num_initial=1, num_local=1, window=5
)


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ({"compress_block": 0}, ValueError, "compress_block: expected at least 1, got 0"),
        ({"compress_stride": 0}, ValueError, "compress_stride: expected at least 1, got 0"),
        ({"select_block": 0}, ValueError, "select_block: expected at least 1, got 0"),
        ({"window": 0}, ValueError, "window: expected at least 1, got 0"),
        ({"num_selected": 0}, ValueError, "num_selected: expected at least 1, got 0"),
        ({"num_initial": -1}, ValueError, "num_initial: expected at least 0, got -1"),
        ({"num_local": -1}, ValueError, "num_local: expected at least 0, got -1"),
        ({"window": 2**63}, ValueError, f"window: expected at most {2**63 - 1}, got {2**63}"),
        ({"num_selected": 2**15 + 1}, ValueError, "num_selected: expected at most 32768, got 32769"),
        ({"compress_stride": 64}, ValueError, "compress_stride: expected at most compress_block=32, got 64"),
        (
            {"compress_stride": 12},
            ValueError,
            "compress_stride: expected a divisor of compress_block=32, got 12",
        ),
        ({"select_block": 72}, ValueError, "compress_stride: expected a divisor of select_block=72, got 16"),
        ({"select_block": 16}, ValueError, "compress_block: expected at most select_block=16, got 32"),
        (
            {"num_selected": 2},
            ValueError,
            "num_selected: expected at least num_initial + num_local = 3, got 2",
        ),
        ({"window": True}, TypeError, "window: expected an int, got bool True"),
        ({"window": 5.0}, TypeError, "window: expected an int, got float 5.0"),
        ({"window": "5"}, TypeError, "window: expected an int, got str '5'"),
        ({"window": None}, TypeError, "window: expected an int, got NoneType None"),
    ],
)
def test_wrong_size_is_named(sizes, error, message):
    """Guards against sizes that fail later, or compute something else."""
    with pytest.raises(error) as caught:
        SparseConfig(**sizes)
    assert str(caught.value) == message


def test_tokens_read_are_those_of_the_paper():
    """Table 4, less the block that the text cuts short; and never more of a kind than there are."""
    found = [SparseConfig().tokens_read(1024 * kilo) for kilo in (8, 16, 32, 64)]
    assert [count + 1 for count in found] == [2048, 2560, 3584, 5632]
    assert SparseConfig().tokens_read(100) == 5 + 100 + 100
    assert SparseConfig().tokens_read(1) == 2


def test_window_that_is_a_tensor_is_refused():
    """Guards against a config that cannot cross an operator schema."""
    with pytest.raises(TypeError, match=r"^window: expected an int, got Tensor"):
        SparseConfig(window=torch.tensor(5))


def test_config_is_keyword_only_frozen_and_crosses_a_schema_unchanged():
    """Guards against sizes swapped by position, changed after the check, or lost in an operator."""
    with pytest.raises(TypeError):
        SparseConfig(32)
    with pytest.raises(TypeError, match="windw"):
        SparseConfig(windw=5)
    with pytest.raises(AttributeError):
        CONFIG.window = 7
    assert SparseConfig.from_ints(CONFIG.as_ints()) == CONFIG
    assert CONFIG.as_ints() == [4, 2, 8, 2, 1, 1, 5]
    assert hash(SparseConfig()) == hash(SparseConfig())
