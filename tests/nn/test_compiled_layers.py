"""torch.compile of layers and of the model: one program without a break, the same results, all lengths."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trisparse.baselines.full_attention import FullAttention
from trisparse.config import SparseConfig
from trisparse.invariance import batch_invariant
from trisparse.models import TrisparseConfig, TrisparseForCausalLM
from trisparse.nn.attention import NativeSparseAttention
from trisparse.nn.probe import recording

SMALL = {"compress_block": 4, "compress_stride": 2, "select_block": 4, "num_selected": 3, "window": 5}
# torch.compile's own, about how it looks at functions of autograd
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "nsa": lambda: NativeSparseAttention(32, 4, 2, 8, config=SparseConfig(**SMALL)),
    "full": lambda: FullAttention(32, 4, 2, 8, value_dim=6, gated=True),
}


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch.compiler.reset()


def hidden_of(tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(2, tokens, 32, generator=generator).requires_grad_()


@pytest.mark.parametrize("kind", LAYERS)
def test_layer_compiles_whole(kind: str) -> None:
    """Guards against a break in the graph, and against a second length that the program cannot take."""
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    program = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for tokens in (20, 21, 30):
        hidden = hidden_of(tokens)
        results = [call(hidden) for call in (program, layer)]
        grads = [torch.autograd.grad(out.square().sum(), hidden)[0] for out in results]
        torch.testing.assert_close(results[0], results[1])
        torch.testing.assert_close(grads[0], grads[1])


def test_model_compiles_whole() -> None:
    """Guards what a training loop compiles: the loss of a model of both kinds of layer."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2}
    small = {f"nsa_{name}": size for name, size in SMALL.items()}
    model = TrisparseForCausalLM(TrisparseConfig(**sizes, **small, attention=["nsa", "full"]))
    program = torch.compile(model, fullgraph=True, backend="aot_eager")
    ids = torch.randint(40, (2, 20), generator=torch.Generator().manual_seed(1))
    losses = [call(ids, labels=ids, use_cache=False).loss for call in (program, model)]
    torch.testing.assert_close(losses[0], losses[1])


def test_modes_reach_into_what_was_compiled_outside_of_them() -> None:
    """Guards against a program that keeps the answer of the time when it was compiled."""
    torch.manual_seed(0)
    layer = LAYERS["nsa"]()
    program = torch.compile(layer, backend="eager")
    with torch.no_grad():
        plain = program(hidden_of(20))
        with recording() as record:
            torch.testing.assert_close(program(hidden_of(20)), plain)
        assert len(record) == 1
        with batch_invariant():
            invariant = program(hidden_of(20))
            assert torch.equal(invariant, layer(hidden_of(20)))
        assert torch.equal(program(hidden_of(20)), plain)


@pytest.mark.parametrize("kind", LAYERS)
def test_cached_outputs_have_no_gradient(kind: str) -> None:
    """Guards against a gradient of the output projection alone, which looks like one of the layer."""
    layer = LAYERS[kind]()
    cache = layer.new_cache()  # type: ignore[operator]
    for part in hidden_of(12).split(4, dim=1):
        assert not layer(part, cache=cache).requires_grad
