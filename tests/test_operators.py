"""The operators behave as PyTorch expects: tracing, compiling, checkpointing, autocast, threads."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import trisparse
from trisparse import SparseConfig, backends, ops
from trisparse.testing.inputs import Case, device_of, kernel_backends, make_inputs, usable_backends

KERNELS = kernel_backends(torch.float32)
# the operators for the whole op exist in fused backends only; tests/test_decode.py has the one for decoding
OPERATORS = [
    (backend, name)
    for backend in KERNELS
    for name in ops._SCHEMAS
    if (backend in backends.FUSED or not name.startswith("sparse_")) and name != "decode_forward"
]
CONFIG = SparseConfig(
    compress_block=8, compress_stride=4, select_block=16, num_selected=2, num_initial=1, num_local=1, window=9
)


def draw(backend, dtype=torch.float32, **others):
    sizes = {"batch": 2, "tokens": 37, "heads": 4, "groups": 2, "head_dim": 8, "value_dim": 6}
    case = Case(**{"name": "operators", "config": CONFIG, **sizes, **others})
    return make_inputs(case, dtype, 10).to(device_of(backend))


def operator_arguments(name, inputs, backend):
    """Valid arguments of an operator."""
    place = (CONFIG.as_ints(), 0.35, inputs.cu_seqlens, inputs.query_start, backend)
    call = torch.ops.trisparse
    query, grad = inputs.query, torch.ones_like(inputs.query[..., :6])
    if name == "sparse_forward":
        return (*inputs.tensors, True, *place)
    if name == "sparse_recompute_backward":
        *_, ids = call.sparse_forward(*inputs.tensors, False, *place)
        return (grad, *inputs.tensors, ids, *place)
    if name == "sparse_backward":
        return (grad, *inputs.tensors, *call.sparse_forward(*inputs.tensors, True, *place)[1:], *place)
    ids = call.select_blocks(query, inputs.compressed[0], *place)
    if name == "select_blocks":
        return (query, inputs.compressed[0], *place)
    branch = name.split("_")[0]
    pair = getattr(inputs, branch)
    tensors = (query, *pair, ids) if branch == "selected" else (query, *pair)
    if not name.endswith("backward"):
        return (*tensors, *place)
    return (grad, *tensors, *getattr(call, f"{branch}_forward")(*tensors, *place), *place)


PLACES = {
    "alone": {},
    "packed": {"batch": 1, "cu_seqlens": (0, 0, 20, 37)},
    "from the middle": {"query_start": 30},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("backend", "name"), OPERATORS)
def test_operator_passes_opcheck(backend, name, place, dtype):
    """Guards against a schema, a fake shape, dtype or stride, or an alias that is not the operator's."""
    inputs = draw(backend, dtype, **PLACES[place])
    operator = getattr(torch.ops.trisparse, name).default
    torch.library.opcheck(operator, operator_arguments(name, inputs, backend))


@pytest.mark.parametrize("backend", [name for name in KERNELS if name in backends.FUSED])
def test_whole_op_that_saves_nothing_passes_opcheck(backend):
    """Guards against branches and log-sum-exps of another shape than traced where no backward will come."""
    inputs = draw(backend)
    place = (CONFIG.as_ints(), 0.35, None, 0, backend)
    torch.library.opcheck(torch.ops.trisparse.sparse_forward.default, (*inputs.tensors, False, *place))


def test_all_operators_are_the_documented_ones():
    """Guards against an operator that no test sees: one per stage and direction, four for the whole op."""
    assert sorted(ops._SCHEMAS) == [
        "compressed_backward",
        "compressed_forward",
        "compressed_select_forward",
        "decode_forward",
        "select_blocks",
        "selected_backward",
        "selected_forward",
        "sparse_backward",
        "sparse_forward",
        "sparse_recompute_backward",
        "window_backward",
        "window_forward",
    ]


def loss_and_gradients(function, inputs, **where):
    inputs = inputs.leaves()
    out = function(*inputs.all_arguments, **where)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs.tensors)]


# PyTorch instantiates an autograd.Function itself while it traces one
_TORCH_TRACING = "ignore:.*should not be instantiated:DeprecationWarning"


@pytest.mark.filterwarnings(_TORCH_TRACING)
@pytest.mark.parametrize("place", ["alone", "packed"])
@pytest.mark.parametrize("backend", [*KERNELS, "auto"])
def test_public_function_compiles_whole(backend, place):
    """Guards against graph breaks, and against compiled results that are not the eager ones."""
    torch.compiler.reset()
    inputs = draw(backend, **PLACES[place])
    compiled = torch.compile(trisparse.sparse_attention, fullgraph=True, backend="aot_eager")
    where = {**inputs.where, "backend": backend}
    actual = loss_and_gradients(compiled, inputs, **where)
    for got, wanted in zip(
        actual, loss_and_gradients(trisparse.sparse_attention, inputs, **where), strict=True
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.filterwarnings(_TORCH_TRACING)
@pytest.mark.parametrize("backend", KERNELS)
def test_dynamic_length_compiles_once(backend):
    """Guards against one compilation per sequence length."""
    torch.compiler.reset()
    frames = []

    def counting(graph, _):
        frames.append(graph)
        return graph.forward

    compiled = torch.compile(trisparse.sparse_attention, fullgraph=True, dynamic=True, backend=counting)
    # no length has as many compressed blocks as another dimension has entries: tracing would see one symbol
    for tokens in (41, 45, 64, 51):
        inputs = draw(backend, tokens=tokens)
        out = compiled(*inputs.all_arguments, backend=backend)
        wanted = trisparse.sparse_attention(*inputs.all_arguments, backend=backend)
        torch.testing.assert_close(out, wanted)
    assert len(frames) == 1


@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_autocast_does_not_reach_in(backend):
    """Guards against fp32 inputs computed in bf16 inside a caller's autocast region (spec 9)."""
    inputs = draw(backend)
    wanted = loss_and_gradients(trisparse.sparse_attention, inputs, backend=backend)
    with torch.autocast(inputs.query.device.type, dtype=torch.bfloat16):
        out = trisparse.sparse_attention(*inputs.all_arguments, backend=backend)
        ids = trisparse.select_blocks(inputs.query, inputs.compressed[0], CONFIG, backend=backend)
    assert out.dtype == torch.float32
    assert torch.equal(out, wanted[0])
    assert torch.equal(
        ids, trisparse.select_blocks(inputs.query, inputs.compressed[0], CONFIG, backend=backend)
    )


@pytest.mark.parametrize("backend", KERNELS)
def test_backward_inside_autocast_stays_exact(backend):
    """Guards against a backward that a caller runs in autocast by mistake."""
    inputs = draw(backend)
    wanted = loss_and_gradients(trisparse.sparse_attention, inputs, backend=backend)
    with torch.autocast(inputs.query.device.type, dtype=torch.bfloat16):
        actual = loss_and_gradients(trisparse.sparse_attention, inputs, backend=backend)
    for got, exact in zip(actual, wanted, strict=True):
        assert torch.equal(got, exact)


@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_activation_checkpointing_changes_nothing(backend):
    """Guards against a forward whose second run differs from its first."""
    inputs = draw(backend)

    def recomputed(*arguments, **where):
        return checkpoint(trisparse.sparse_attention, *arguments, use_reentrant=False, **where)

    actual = loss_and_gradients(recomputed, inputs, backend=backend)
    wanted = loss_and_gradients(trisparse.sparse_attention, inputs, backend=backend)
    for got, exact in zip(actual, wanted, strict=True):
        assert torch.equal(got, exact)


@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_inference_mode_changes_nothing(backend):
    """Guards against views or in-place steps that inference tensors forbid."""
    inputs = draw(backend)
    wanted = trisparse.sparse_attention(*inputs.all_arguments, backend=backend)
    with torch.inference_mode():
        assert torch.equal(trisparse.sparse_attention(*inputs.all_arguments, backend=backend), wanted)


@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_repeats_are_equal_to_the_last_bit(backend):
    """Guards against atomics, leftovers in scratch memory and a selection that depends on timing."""
    inputs = draw(backend)
    first = loss_and_gradients(trisparse.sparse_attention, inputs, backend=backend)
    for _ in range(10):
        for got, wanted in zip(
            loss_and_gradients(trisparse.sparse_attention, inputs, backend=backend), first, strict=True
        ):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", KERNELS)
def test_one_and_two_threads_give_the_same_bits(backend):
    """Guards against sums split by the number of threads."""
    inputs = draw(backend, tokens=150)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(loss_and_gradients(trisparse.sparse_attention, inputs, backend=backend))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("backend", KERNELS)
def test_a_row_of_the_batch_does_not_depend_on_its_neighbours(backend):
    """Guards against answers that change with the load of a server."""
    inputs = draw(backend, batch=5)
    together = loss_and_gradients(trisparse.sparse_attention, inputs, backend=backend)
    for row in (0, 3):
        alone = inputs.with_tensors(tuple(x[row : row + 1] for x in inputs.tensors))
        single = loss_and_gradients(trisparse.sparse_attention, alone, backend=backend)
        for got, wanted in zip(together, single, strict=True):
            assert torch.equal(got[row : row + 1], wanted)
