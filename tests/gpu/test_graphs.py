"""A captured CUDA graph replays with new inputs, and a call waits for its own stream."""

import pytest
import torch

from .calls import draw, everything, forward, grad_like, make_case
from .device import needs_gpu

pytestmark = needs_gpu

CASES = {
    "dense": make_case("dense", (16, 2), (192, 128), 1500, batch=2),
    "packed": make_case("packed", (16, 2), (128, 128), 1500, cu_seqlens=(0, 100, 1500)),
}
# as many compressed blocks as (0, 100, 1500) has: their number is a shape, and shapes are part of a graph
OTHER_BOUNDS = (0, 132, 1500)


def copy_into(static, fresh):
    for old, new in zip(static.tensors, fresh.tensors, strict=True):
        old.copy_(new)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", CASES)
def test_replay_equals_eager(name, direction, dtype):
    """Guards against a host synchronisation, an allocation or a decision that a graph would freeze."""
    static = draw(CASES[name], dtype, seed=0)
    grad_out = grad_like(static)

    def call():
        return [forward(static)] if direction == "forward" else everything(static, grad_out)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for seed in (1, 2):
        copy_into(static, draw(CASES[name], dtype, seed=seed))
        grad_out.copy_(grad_like(static, seed=seed + 10))
        if static.cu_seqlens is not None:
            static.cu_seqlens.copy_(torch.tensor(OTHER_BOUNDS if seed == 2 else (0, 100, 1500)))
        graph.replay()
        torch.cuda.synchronize()
        replayed = [tensor.clone() for tensor in captured]
        for got, wanted in zip(replayed, call(), strict=True):
            assert torch.equal(got, wanted)


def test_call_waits_for_its_stream():
    """Guards against a launch on the default stream: the inputs are written late, on the caller's stream."""
    case = CASES["dense"]
    wanted = everything(draw(case, torch.bfloat16, seed=3), grad_like(draw(case, torch.bfloat16)))
    late = draw(case, torch.bfloat16, seed=4)
    grad_out = grad_like(late)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    fresh = draw(case, torch.bfloat16, seed=3)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        copy_into(late, fresh)
        found = everything(late, grad_out)
    side.synchronize()
    for got, expected in zip(found, wanted, strict=True):
        assert torch.equal(got, expected)
