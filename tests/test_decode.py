"""`sparse_decode`: every row of a ragged batch gets what `sparse_attention` gives it alone."""

import re
from dataclasses import replace

import pytest
import torch
from arguments import WHOLE, arguments
from decoding import check_rows, make_decoding
from operators import Operators
from wrong_arguments import BAD

from trisparse import SparseConfig, backends
from trisparse.decode import sparse_decode
from trisparse.testing.inputs import device_of, kernel_backends, usable_backends

BACKENDS = kernel_backends(torch.float32)
NATIVE = [name for name in BACKENDS if name in backends.FUSED]
SMALL = SparseConfig(
    compress_block=8, compress_stride=4, select_block=16, num_selected=4, num_initial=1, num_local=2, window=9
)
CONFIGS = {
    "paper": SparseConfig(),
    "small": SMALL,
    "window_of_one": SparseConfig(
        compress_block=16,
        compress_stride=16,
        select_block=32,
        num_selected=3,
        num_initial=0,
        num_local=0,
        window=1,
    ),
    "odd_blocks": SparseConfig(
        compress_block=12,
        compress_stride=6,
        select_block=18,
        num_selected=5,
        num_initial=2,
        num_local=1,
        window=100,
    ),
    "large_blocks": SparseConfig(
        compress_block=64,
        compress_stride=32,
        select_block=128,
        num_selected=2,
        num_initial=1,
        num_local=1,
        window=70,
    ),
}
# (H, G, D, E)
HEADS = {
    "16 of 1": (16, 1, 32, 32),
    "4 of 2": (4, 2, 24, 40),
    "6 of 1": (6, 1, 192, 128),
    "40 of 2": (40, 2, 16, 16),
}


@pytest.mark.parametrize("ring", [False, True], ids=["positions", "ring"])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_ragged_rows_are_what_they_are_alone(backend, config, heads, ring):
    """Guards against a row that sees another row's length, and against garbage behind a row's tokens."""
    h, g, d, e = HEADS[heads]
    shape = {"heads": h, "groups": g, "head_dim": d, "value_dim": e}
    for new_tokens, lengths in ((1, [1, 300, 64, 129]), (5, [5, 77, 261])):
        call = make_decoding(lengths, new_tokens, CONFIGS[config], ring=ring, **shape).to(device_of(backend))
        check_rows(call, *call.run(backend))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("new_tokens", [1, 3, 20])
@pytest.mark.parametrize("backend", BACKENDS)
def test_narrow_numbers(backend, new_tokens, dtype):
    """Guards against sums in half precision, and against garbage that a narrow kernel multiplies by 0."""
    lengths = [new_tokens, new_tokens + 50, 500]
    shape = {"heads": 16, "groups": 1, "head_dim": 64, "value_dim": 64}
    call = make_decoding(lengths, new_tokens, SMALL, dtype=dtype, ring=True, **shape).to(device_of(backend))
    check_rows(call, *call.run(backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("new_tokens", [33, 64])
@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_many_new_tokens(backend, new_tokens, dtype):
    """Guards guesses to be verified and the end of a prompt: more rows than a tile, from any start."""
    lengths = [new_tokens, new_tokens + 1, 200, 513]
    for heads, config, ring in (("16 of 1", "small", True), ("4 of 2", "paper", False)):
        h, g, d, e = HEADS[heads]
        shape = {"heads": h, "groups": g, "head_dim": d, "value_dim": e, "dtype": dtype}
        call = make_decoding(lengths, new_tokens, CONFIGS[config], ring=ring, **shape).to(device_of(backend))
        check_rows(call, *call.run(backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_rows_are_split_and_joined(backend):
    """Guards against a piece of a long sequence that is weighed by its own softmax."""
    lengths = [4500, 130, 9000]
    call = make_decoding(lengths, 2, SparseConfig(), heads=16, groups=1, ring=True)
    check_rows(call, *call.to(device_of(backend)).run(backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("new_tokens", [1, 4])
@pytest.mark.parametrize("backend", NATIVE)
def test_a_row_is_bit_for_bit_what_it_is_alone(backend, new_tokens, dtype):
    """Guards against splits that depend on the batch or on the longest row."""
    call = make_decoding([700, 9, 3000, 64], new_tokens, SparseConfig(), heads=8, dtype=dtype).to(
        device_of(backend)
    )
    out, ids = call.run(backend)
    for row in range(len(call.rows)):
        one, one_ids = call.only(row).run(backend)
        assert torch.equal(one, out[row : row + 1])
        assert torch.equal(one_ids, ids[row : row + 1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_row_that_starts_below_zero_takes_no_part(backend):
    """Guards against a crash, or a wrong neighbour, where a slot of the batch is free."""
    call = make_decoding([40, 70, 20], 2, SMALL, ring=True).to(device_of(backend))
    out, ids = call.run(backend)
    starts = call.starts.clone()
    starts[1] = -1
    with_hole, hole_ids = replace(call, starts=starts).run(backend)
    assert not with_hole[1].any()
    assert (hole_ids[1] == -1).all()
    for row in (0, 2):
        assert torch.equal(with_hole[row], out[row])
        assert torch.equal(hole_ids[row], ids[row])


@pytest.mark.parametrize("backend", BACKENDS)
def test_compressed_branch_takes_its_own_query(backend):
    """Guards against one query for all branches where the compressed one goes without rope."""
    call = make_decoding([90, 200], 2, SMALL)
    other = torch.randn(call.tensors[0].shape, generator=torch.Generator().manual_seed(3))
    gold, gold_ids = call.run("reference", query_cmp=other)
    out, ids = call.to(device_of(backend)).run(backend, query_cmp=other.to(device_of(backend)))
    assert torch.equal(ids.cpu(), gold_ids)
    torch.testing.assert_close(out.cpu(), gold)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shared_keys_and_values_serve_both_branches(backend):
    """Guards against a window that is read from a copy where selected and window branch share theirs."""
    call = make_decoding([90, 200], 2, SMALL)
    query, compressed, selected, _, gates = call.tensors
    shared = replace(call, tensors=(query, compressed, selected, selected, gates))
    gold, gold_ids = shared.run("reference")
    out, ids = shared.to(device_of(backend)).run(backend)
    assert torch.equal(ids.cpu(), gold_ids)
    torch.testing.assert_close(out.cpu(), gold)


@pytest.mark.parametrize(
    "order", [(0, 1, 2, 3), (0, 2, 1, 3), (0, 3, 1, 2)], ids=["rows", "heads", "features"]
)
@pytest.mark.parametrize("backend", NATIVE)
def test_layouts_of_tensors_change_nothing(backend, order):
    """Guards against a step that takes strides, or copies, from an earlier one of the same shapes."""
    call = make_decoding([90, 200], 2, SMALL, ring=True).to(device_of(backend))
    out, ids = call.run(backend)
    back = [order.index(axis) for axis in range(4)]
    query, *pairs, gates = call.tensors
    laid_out = [tuple(x.permute(order).contiguous().permute(back) for x in pair) for pair in pairs]
    other = replace(call, tensors=(query, *laid_out, gates))
    for _ in range(2):
        found, found_ids = other.run(backend)
        assert torch.equal(found_ids, ids)
        torch.testing.assert_close(found, out)


@pytest.mark.parametrize("place", ["ring", "positions"])
@pytest.mark.parametrize("backend", NATIVE)
def test_operator_passes_opcheck(backend, place):
    """Guards against a schema, a fake shape, dtype or stride, or an alias that is not the operator's."""
    call = make_decoding([40, 70], 2, SMALL, ring=place == "ring").to(device_of(backend))
    query, *pairs, gates = call.tensors
    tensors = (query, None, *(x for pair in pairs for x in pair), gates, call.starts)
    ring = pairs[2][0].shape[1] if place == "ring" else 0
    arguments = (*tensors, ring, SMALL.as_ints(), 0.35, backend)
    torch.library.opcheck(torch.ops.trisparse.decode_forward.default, arguments)


@pytest.mark.parametrize("backend", NATIVE)
def test_whoever_watches_sees_the_operator(backend):
    """Guards against a step past the dispatcher under a mode, a profiler or a transform."""
    call = make_decoding([40, 70], 2, SMALL, ring=True).to(device_of(backend))
    out, _ = call.run(backend)
    with Operators() as seen:
        call.run(backend)
    assert "trisparse.decode_forward.default" in seen.calls
    with torch.profiler.profile() as profile:
        call.run(backend)
    assert "trisparse::decode_forward" in {event.key for event in profile.key_averages()}
    more = {"window_ring": True, "backend": backend}
    scaled = torch.vmap(lambda x: sparse_decode(*call.tensors[:4], x, call.starts, call.config, **more)[0])
    both = scaled(torch.stack([call.tensors[4], 2 * call.tensors[4]]))
    torch.testing.assert_close(both[0], out)


def wrong(call, **changes):
    names = ("query", "compressed", "selected", "window", "gates")
    arguments = dict(zip(names, call.tensors, strict=True), starts=call.starts, config=call.config)
    return {**arguments, "window_ring": call.ring, **changes}


# what a GPU does not look at, for the values of `starts` would have to come to the host
VALUES_OF_STARTS = ("^starts: expected every row", "^key_cmp: expected room")


@pytest.mark.parametrize("backend", usable_backends(torch.float32))
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"starts": c.starts.long()}, "^starts: expected int32"),
        (lambda c: {"starts": c.starts[:1]}, r"^starts: expected \[B=2\]"),
        (
            lambda c: {"starts": c.starts + 20},
            "^starts: expected every row to end within key_slc's 77 tokens",
        ),
        (lambda _: {"starts": [1, 2]}, "^starts: expected a torch.Tensor"),
        (
            lambda c: {"compressed": tuple(x[:, :15] for x in c.tensors[1])},
            "^key_cmp: expected room for 16 blocks of 70 tokens, got 15",
        ),
        (
            lambda c: {"window": tuple(x[:, :63] for x in c.tensors[3])},
            "^key_win: expected a ring of a multiple of 64",
        ),
        (lambda _: {"window_ring": False}, "^key_win: expected T=77 tokens"),
        (lambda c: {"query_cmp": c.tensors[0][:, :1]}, "^query_cmp: expected"),
        (lambda c: {"gates": c.tensors[4][..., :2]}, "^gates: expected"),
        (lambda c: {"compressed": c.tensors[1][0], "selected": c.tensors[2] * 2}, "^key_cmp, value_cmp: exp"),
        (lambda c: {"window": tuple(x.double() for x in c.tensors[3])}, "^key_win: expected query's dtype"),
        (lambda _: {"config": {}}, "^config: expected a SparseConfig"),
        (lambda _: {"scale": True}, "^scale: expected a float"),
        (lambda _: {"scale": [1.0]}, "^scale: expected a float"),
        (lambda _: {"window_ring": "no"}, "^window_ring: expected True or False"),
        (lambda _: {"backend": "cuda"}, "^backend: expected"),
    ],
)
def test_wrong_argument_is_named(change, message, backend):
    """Also after a right call: what was found right once is not looked at again."""
    device = device_of(backend)
    if torch.device(device).type != "cpu" and message.startswith(VALUES_OF_STARTS):
        pytest.skip("the values of starts are looked at on a CPU alone")
    call = make_decoding([40, 70], 2, SMALL, ring=True).to(device)
    sparse_decode(**wrong(call, backend=backend))
    sparse_decode(**wrong(call, backend=backend, scale=1.0))
    with pytest.raises((TypeError, ValueError), match=message):
        sparse_decode(**wrong(call, **{"backend": backend, **change(call)}))


# a step has no documents, begins where `starts` say, and may have room for more blocks than there are
TABLE = [
    pytest.param(*rest, id=label)
    for label, functions, *rest in BAD
    if WHOLE in functions and not {"cu_seqlens", "query_start"} & rest[0].keys() and "block too" not in label
]


def step_of(given, backend):
    """A step whose tokens are all new, by the arguments of `sparse_attention`."""
    device = device_of(backend)
    g = {
        name: x.to(device) if isinstance(x, torch.Tensor) and x.device.type == "cpu" else x
        for name, x in given.items()
    }
    pairs = [(g[f"key_{branch}"], g[f"value_{branch}"]) for branch in ("cmp", "slc", "win")]
    starts = torch.zeros(2, dtype=torch.int32, device=device)
    more = {"scale": g["scale"], "backend": backend}
    return sparse_decode(g["query"], *pairs, g["gates"], starts, g["config"], **more)


@pytest.mark.parametrize(("change", "error", "name", "words"), TABLE)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_wrong_argument_of_the_whole_op_is_named_alike(change, error, name, words):
    """Guards a step against what the whole op refuses, and against backends with errors of their own."""
    given, messages = arguments() | {key: make() for key, make in change.items()}, set()
    for backend in usable_backends(torch.float32):
        step_of(arguments(), backend)
        with pytest.raises(error) as caught:
            step_of(given, backend)
        assert type(caught.value) is error
        messages.add(str(caught.value).replace("cuda:0", "cpu"))
    (message,) = messages
    assert re.match(rf"{name}\b.*: expected ", message), message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_gates_in_double_precision(backend):
    """Guards the one tensor that may be wider than the query."""
    call = make_decoding([5, 77], 1, SMALL).to(device_of(backend))
    query, *pairs, gates = call.tensors
    wide = replace(call, tensors=(query, *pairs, gates.double()))
    for _ in range(2):
        out, ids = wide.run(backend)
        assert torch.equal(out, call.run(backend)[0])
        assert torch.equal(ids, call.run(backend)[1])


@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_there_is_no_gradient(backend):
    """Guards memory that one backend would keep and another not."""
    call = make_decoding([5, 77], 1, SMALL).to(device_of(backend))
    call.tensors[0].requires_grad_()
    assert not call.run(backend)[0].requires_grad


@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_negated_views(backend):
    """Guards kernels that read memory whose signs PyTorch has yet to turn."""
    call = make_decoding([5, 77], 1, SMALL).to(device_of(backend))
    query, *others = call.tensors
    turned = replace(call, tensors=(torch._neg_view(-query), *others))
    for one in (call, turned):
        assert torch.equal(one.run(backend)[0], call.run(backend)[0])


@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_rows_that_take_no_part_need_no_room(backend):
    call = make_decoding([70, 70], 64, SMALL, spare=0).to(device_of(backend))
    none = replace(call, starts=torch.full_like(call.starts, -1))
    query, (key_cmp, value_cmp), (key_slc, value_slc), (key_win, value_win), gates = none.tensors
    short = [x[:, :40] for x in (key_slc, value_slc, key_win, value_win)]
    tensors = (query, (key_cmp, value_cmp), tuple(short[:2]), tuple(short[2:]), gates)
    out, ids = replace(none, tensors=tensors).run(backend)
    assert not out.any()
    assert (ids == -1).all()


def test_an_option_is_looked_at_each_time():
    """Guards the memory of calls: 1 == True."""
    call = make_decoding([5, 77], 1, SMALL, ring=True)
    call.run("auto")
    with pytest.raises(TypeError, match="^window_ring: expected True or False, got 1"):
        replace(call, ring=1).run("auto")
