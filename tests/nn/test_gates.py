"""The gates and the sum that they weigh."""

import torch

from trisparse.api import gated_sum
from trisparse.nn.gates import Gates


def test_gates_are_the_sigmoid_of_a_linear_map_by_token_head_and_branch() -> None:
    """Guards against a softmax, and against heads and branches swapped."""
    torch.manual_seed(0)
    gates = Gates(6, num_heads=4).double()
    torch.nn.init.normal_(gates.proj.weight)
    hidden = torch.randn(2, 5, 6, dtype=torch.float64)
    actual = gates(hidden)
    assert actual.shape == (2, 5, 4, 3)
    for head in range(4):
        for branch in range(3):
            row = 3 * head + branch
            score = hidden @ gates.proj.weight[row] + gates.proj.bias[row]
            torch.testing.assert_close(actual[:, :, head, branch], 1 / (1 + (-score).exp()))


def test_gates_start_open_by_half() -> None:
    """Guards against a branch that is closed, or favoured, before training."""
    torch.manual_seed(0)
    gates = Gates(64, num_heads=8)(torch.randn(2, 10, 64))
    assert (gates - 0.5).abs().max() < 0.25
    assert (gates - 0.5).abs().mean() < 0.05


def test_one_branch_gives_one_gate_per_head() -> None:
    """Guards the gate of the gated baseline, which must broadcast over the channels of a head."""
    assert Gates(8, num_heads=2, num_branches=1)(torch.zeros(1, 3, 8)).shape == (1, 3, 2, 1)


def test_gated_sum_is_each_branch_times_its_own_gate() -> None:
    """Guards against gates that meet the wrong branch."""
    torch.manual_seed(0)
    branches = tuple(torch.randn(2, 3, 4, 5, dtype=torch.float64) for _ in range(3))
    gates = torch.rand(2, 3, 4, 3, dtype=torch.float64)
    expected = sum(gates[..., i : i + 1] * branch for i, branch in enumerate(branches))
    torch.testing.assert_close(gated_sum(gates, branches), expected)


def test_gated_sum_of_bf16_is_rounded_once() -> None:
    """Guards against a sum in bf16, where 256 + 1 + 1 stays 256."""
    branches = tuple(torch.full((1, 1, 1, 1), size, dtype=torch.bfloat16) for size in (256.0, 1.0, 1.0))
    out = gated_sum(torch.ones(1, 1, 1, 3, dtype=torch.bfloat16), branches)
    assert out.dtype == torch.bfloat16
    assert out.item() == 258.0
