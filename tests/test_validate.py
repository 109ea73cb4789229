"""Wrong arguments: the same error on every backend, beginning with the argument's name."""

import re

import numpy
import pytest
import torch

import trisparse
from trisparse import SparseConfig
from trisparse.testing.inputs import Case, device_of, make_inputs, usable_backends

CONFIG = SparseConfig(
    compress_block=4, compress_stride=2, select_block=8, num_selected=2, num_initial=1, num_local=1, window=5
)
CASE = Case(name="validate", batch=2, tokens=16, heads=4, groups=2, head_dim=8, value_dim=6, config=CONFIG)


def arguments(batch=2):
    """The arguments of all five functions by name."""
    case = CASE if batch == 2 else Case(**{**vars(CASE), "batch": batch})
    inputs = make_inputs(case, torch.float32, 0)
    return {
        "query": inputs.query,
        "key_cmp": inputs.compressed[0],
        "value_cmp": inputs.compressed[1],
        "key_slc": inputs.selected[0],
        "value_slc": inputs.selected[1],
        "key_win": inputs.window[0],
        "value_win": inputs.window[1],
        "gates": inputs.gates,
        "ids": torch.zeros(batch, 16, 2, 2, dtype=torch.int32),
        "config": CONFIG,
        "scale": None,
        "cu_seqlens": None,
        "query_start": 0,
    }


def call(function, given, backend):
    device = device_of(backend)
    g = {
        name: x.to(device) if isinstance(x, torch.Tensor) and x.device.type == "cpu" else x
        for name, x in given.items()
    }
    where = {name: g[name] for name in ("scale", "cu_seqlens", "query_start")} | {"backend": backend}
    if function == "sparse_attention":
        pairs = [(g[f"key_{branch}"], g[f"value_{branch}"]) for branch in ("cmp", "slc", "win")]
        return trisparse.sparse_attention(g["query"], *pairs, g["gates"], g["config"], **where)
    if function == "compressed_attention":
        return trisparse.compressed_attention(g["query"], g["key_cmp"], g["value_cmp"], g["config"], **where)
    if function == "select_blocks":
        return trisparse.select_blocks(g["query"], g["key_cmp"], g["config"], **where)
    if function == "selected_attention":
        return trisparse.selected_attention(
            g["query"], g["key_slc"], g["value_slc"], g["ids"], g["config"], **where
        )
    return trisparse.window_attention(g["query"], g["key_win"], g["value_win"], g["config"], **where)


WHOLE, CMP, SELECT, SLC, WIN = (
    "sparse_attention",
    "compressed_attention",
    "select_blocks",
    "selected_attention",
    "window_attention",
)
EVERY = (WHOLE, CMP, SELECT, SLC, WIN)


def zeros(*shape, **kwargs):
    return torch.zeros(*shape, **kwargs)


def bounds(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


def nested():
    return torch.nested.nested_tensor([zeros(3, 4, 8), zeros(2, 4, 8)], layout=torch.jagged)


# id, functions, what is changed, error, the argument's name(s), the words the message must hold
BAD = [
    # types
    ("query is a list", EVERY, {"query": lambda: [1.0]}, TypeError, "query", ["torch.Tensor", "list"]),
    (
        "query is a numpy array",
        EVERY,
        {"query": lambda: numpy.zeros((2, 16, 4, 8))},
        TypeError,
        "query",
        ["torch.Tensor", "ndarray"],
    ),
    ("query is None", EVERY, {"query": lambda: None}, TypeError, "query", ["torch.Tensor", "NoneType"]),
    ("key is a float", (WHOLE, CMP, SELECT), {"key_cmp": lambda: 1.0}, TypeError, "key_cmp", ["float"]),
    ("config is a dict", EVERY, {"config": dict}, TypeError, "config", ["SparseConfig", "dict"]),
    ("ids are float", (SLC,), {"ids": lambda: zeros(2, 16, 2, 2)}, TypeError, "ids", ["int32", "float32"]),
    (
        "ids are bool",
        (SLC,),
        {"ids": lambda: zeros(2, 16, 2, 2, dtype=torch.bool)},
        TypeError,
        "ids",
        ["int32", "bool"],
    ),
    (
        "gates are int",
        (WHOLE,),
        {"gates": lambda: zeros(2, 16, 4, 3, dtype=torch.int64)},
        TypeError,
        "gates",
        ["float32", "int64"],
    ),
    ("scale is a string", EVERY, {"scale": lambda: "1"}, TypeError, "scale", ["float", "str"]),
    ("scale is a bool", EVERY, {"scale": lambda: True}, TypeError, "scale", ["float", "bool"]),
    ("scale is a tensor", EVERY, {"scale": lambda: zeros(())}, TypeError, "scale", ["float", "Tensor"]),
    (
        "query_start is a float",
        EVERY,
        {"query_start": lambda: 0.0},
        TypeError,
        "query_start",
        ["int", "float"],
    ),
    (
        "query_start is a bool",
        EVERY,
        {"query_start": lambda: True},
        TypeError,
        "query_start",
        ["int", "bool"],
    ),
    (
        "cu_seqlens is a list",
        EVERY,
        {"cu_seqlens": lambda: [0, 16]},
        TypeError,
        "cu_seqlens",
        ["Tensor", "list"],
    ),
    # rank and shape
    (
        "query has no batch",
        EVERY,
        {"query": lambda: zeros(16, 4, 8)},
        ValueError,
        "query",
        ["4", "[16, 4, 8]"],
    ),
    (
        "query has no heads",
        EVERY,
        {"query": lambda: zeros(2, 16, 0, 8)},
        ValueError,
        "query",
        [">= 1", "[2, 16, 0, 8]"],
    ),
    (
        "query has D = 0",
        EVERY,
        {"query": lambda: zeros(2, 16, 4, 0)},
        ValueError,
        "query",
        [">= 1", "[2, 16, 4, 0]"],
    ),
    (
        "value has E = 0",
        (SLC,),
        {"value_slc": lambda: zeros(2, 16, 2, 0)},
        ValueError,
        "value",
        [">= 1", "[2, 16, 2, 0]"],
    ),
    (
        "key and value differ in T",
        (SLC,),
        {"value_slc": lambda: zeros(2, 15, 2, 6)},
        ValueError,
        "value",
        ["T=16", "[2, 15, 2, 6]"],
    ),
    (
        "key and value differ in T",
        (WHOLE,),
        {"value_win": lambda: zeros(2, 15, 2, 6)},
        ValueError,
        "value_win",
        ["T=16", "[2, 15, 2, 6]"],
    ),
    (
        "key and value differ in G",
        (WIN,),
        {"value_win": lambda: zeros(2, 16, 1, 6)},
        ValueError,
        "value",
        ["G=2", "[2, 16, 1, 6]"],
    ),
    (
        "window is shorter",
        (WHOLE,),
        {"key_win": lambda: zeros(2, 15, 2, 8), "value_win": lambda: zeros(2, 15, 2, 6)},
        ValueError,
        "key_win",
        ["T=16", "15"],
    ),
    (
        "batch differs",
        (WIN,),
        {"key_win": lambda: zeros(1, 16, 2, 8)},
        ValueError,
        "key",
        ["B=2", "[1, 16, 2, 8]"],
    ),
    (
        "head dim differs",
        (WIN,),
        {"key_win": lambda: zeros(2, 16, 2, 7)},
        ValueError,
        "key",
        ["D=8", "[2, 16, 2, 7]"],
    ),
    (
        "groups do not divide heads",
        (WIN,),
        {"key_win": lambda: zeros(2, 16, 3, 8), "value_win": lambda: zeros(2, 16, 3, 6)},
        ValueError,
        "key",
        ["H=4", "G=3"],
    ),
    (
        "no groups",
        (WIN,),
        {"key_win": lambda: zeros(2, 16, 0, 8), "value_win": lambda: zeros(2, 16, 0, 6)},
        ValueError,
        "key",
        ["H=4", "G=0"],
    ),
    (
        "branches differ in groups",
        (WHOLE,),
        {"key_win": lambda: zeros(2, 16, 4, 8), "value_win": lambda: zeros(2, 16, 4, 6)},
        ValueError,
        "key_win",
        ["[2, 8]", "[4, 8]"],
    ),
    (
        "branches differ in E",
        (WHOLE,),
        {"value_slc": lambda: zeros(2, 16, 2, 5)},
        ValueError,
        "value_slc",
        ["[2, 6]", "[2, 5]"],
    ),
    (
        "ids per head",
        (SLC,),
        {"ids": lambda: zeros(2, 16, 4, 2, dtype=torch.int32)},
        ValueError,
        "ids",
        ["G=2", "[2, 16, 4, 2]", "per KV group"],
    ),
    (
        "ids of 2**15 + 1 slots",
        (SLC,),
        {"ids": lambda: zeros(2, 16, 2, 32769, dtype=torch.int32)},
        ValueError,
        "ids",
        ["32768", "32769"],
    ),
    (
        "two gates",
        (WHOLE,),
        {"gates": lambda: zeros(2, 16, 4, 2)},
        ValueError,
        "gates",
        ["=3", "[2, 16, 4, 2]"],
    ),
    (
        "gates of another length",
        (WHOLE,),
        {"gates": lambda: zeros(2, 15, 4, 3)},
        ValueError,
        "gates",
        ["T=16", "[2, 15, 4, 3]"],
    ),
    (
        "a compressed block too few",
        (WHOLE,),
        {"key_cmp": lambda: zeros(2, 6, 2, 8), "value_cmp": lambda: zeros(2, 6, 2, 6)},
        ValueError,
        "key_cmp",
        ["C=7", "6"],
    ),
    (
        "a compressed block too many",
        (WHOLE,),
        {"key_cmp": lambda: zeros(2, 8, 2, 8), "value_cmp": lambda: zeros(2, 8, 2, 6)},
        ValueError,
        "key_cmp",
        ["C=7", "8"],
    ),
    (
        "a seen compressed block is missing",
        (CMP, SELECT),
        {"key_cmp": lambda: zeros(2, 6, 2, 8), "value_cmp": lambda: zeros(2, 6, 2, 6)},
        ValueError,
        "key_cmp",
        ["C=7", "6"],
    ),
    (
        "rows pass the last token",
        (WHOLE, SLC, WIN),
        {"query_start": lambda: 1},
        ValueError,
        "query_start",
        ["16", "got 1"],
    ),
    (
        "rows begin before the first token",
        EVERY,
        {"query_start": lambda: -1},
        ValueError,
        "query_start",
        ["0", "-1"],
    ),
    # dtype and device
    (
        "key of another dtype",
        (WIN,),
        {"key_win": lambda: zeros(2, 16, 2, 8, dtype=torch.float64)},
        TypeError,
        "key",
        ["float32", "float64"],
    ),
    (
        "value of another dtype",
        (WHOLE,),
        {"value_cmp": lambda: zeros(2, 7, 2, 6, dtype=torch.bfloat16)},
        TypeError,
        "value_cmp",
        ["float32", "bfloat16"],
    ),
    (
        "query is float8",
        EVERY,
        {"query": lambda: zeros(2, 16, 4, 8).to(torch.float8_e4m3fn)},
        NotImplementedError,
        "query",
        ["bfloat16", "float8_e4m3fn"],
    ),
    (
        "query is complex",
        EVERY,
        {"query": lambda: zeros(2, 16, 4, 8, dtype=torch.complex64)},
        NotImplementedError,
        "query",
        ["float32", "complex64"],
    ),
    (
        "query is int",
        EVERY,
        {"query": lambda: zeros(2, 16, 4, 8, dtype=torch.int32)},
        TypeError,
        "query",
        ["float32", "int32"],
    ),
    (
        "query is on meta",
        EVERY,
        {"query": lambda: zeros(2, 16, 4, 8, device="meta")},
        NotImplementedError,
        "query",
        ["data", "meta"],
    ),
    (
        "ids are on meta",
        (SLC,),
        {"ids": lambda: zeros(2, 16, 2, 2, dtype=torch.int32, device="meta")},
        NotImplementedError,
        "ids",
        ["data", "meta"],
    ),
    (
        "cu_seqlens is int64",
        EVERY,
        {"cu_seqlens": lambda: bounds(0, 16, dtype=torch.int64)},
        ValueError,
        "cu_seqlens",
        ["int32", "int64"],
    ),
    (
        "cu_seqlens is on meta",
        EVERY,
        {"cu_seqlens": lambda: bounds(0, 16).to("meta")},
        NotImplementedError,
        "cu_seqlens",
        ["data", "meta"],
    ),
    # layout
    (
        "query is sparse",
        EVERY,
        {"query": lambda: zeros(2, 16, 4, 8).to_sparse()},
        NotImplementedError,
        "query",
        ["dense", "sparse_coo"],
    ),
    ("query is nested", EVERY, {"query": nested}, NotImplementedError, "query", ["dense", "jagged"]),
    # scale
    ("scale is NaN", EVERY, {"scale": lambda: float("nan")}, ValueError, "scale", ["finite", "nan"]),
    ("scale is inf", EVERY, {"scale": lambda: float("inf")}, ValueError, "scale", ["finite", "inf"]),
    ("scale is 0", EVERY, {"scale": lambda: 0}, ValueError, "scale", ["above 0", "got 0"]),
    ("scale is negative", EVERY, {"scale": lambda: -0.5}, ValueError, "scale", ["above 0", "-0.5"]),
    # packed
    (
        "cu_seqlens for a batch of 2",
        EVERY,
        {"cu_seqlens": lambda: bounds(0, 16)},
        ValueError,
        "cu_seqlens",
        ["B=1", "B=2"],
    ),
]
PACKED_BAD = [
    ("first bound is not 0", EVERY, (1, 16), ["0", "got 1"]),
    ("bounds fall", EVERY, (0, 9, 8, 16), ["never fall", "[0, 9, 8, 16]"]),
    ("last bound is too small", (WHOLE, SLC, WIN), (0, 15), ["16", "got 15"]),
    ("last bound is too large", (WHOLE, SLC, WIN), (0, 17), ["16", "got 17"]),
    ("one bound", EVERY, (0,), [">= 2", "got 1"]),
    ("no bound", EVERY, (), [">= 2", "got 0"]),
]
ROWS = [
    pytest.param(function, *rest, id=f"{function}: {name}")
    for name, functions, *rest in BAD
    for function in functions
]
PACKED_ROWS = [
    pytest.param(function, *rest, id=f"{function}: {name}")
    for name, functions, *rest in PACKED_BAD
    for function in functions
]


def check(function, given, error, name, words):
    """All usable backends raise `error`, with one and the same message."""
    messages = set()
    for backend in usable_backends():
        with pytest.raises(error) as caught:
            call(function, given, backend)
        assert type(caught.value) is error
        messages.add(str(caught.value).replace("cuda:0", "cpu"))
    assert len(messages) == 1
    (message,) = messages
    assert re.match(rf"{name}\b.*: expected ", message), message
    assert ", got " in message or "; got " in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(("function", "change", "error", "name", "words"), ROWS)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_wrong_argument_is_named(function, change, error, name, words):
    """Guards against errors from deep inside, and against backends that accept what others refuse."""
    given = arguments() | {key: make() for key, make in change.items()}
    check(function, given, error, name, words)


@pytest.mark.parametrize(("function", "values", "words"), PACKED_ROWS)
def test_wrong_bounds_are_named(function, values, words):
    """Guards against documents that overlap or leave tokens out."""
    given = arguments(batch=1) | {"cu_seqlens": bounds(*values)}
    check(function, given, ValueError, "cu_seqlens", words)


@pytest.mark.parametrize("function", [CMP, SELECT])
def test_compressed_keys_must_be_those_of_the_documents(function):
    """Guards against packed documents that read one another's compressed keys."""
    given = arguments(batch=1) | {"cu_seqlens": bounds(0, 8, 16)}
    check(function, given, ValueError, "key_cmp", ["C=6", "7"])


@pytest.mark.parametrize("function", EVERY)
def test_right_arguments_are_accepted(function):
    """Guards against a table of errors that all come from something else."""
    for backend in usable_backends():
        call(function, arguments(), backend)


@pytest.mark.parametrize("value", [None, torch.zeros(3), (torch.zeros(3),), "key, value"], ids=repr)
@pytest.mark.parametrize("place", [1, 2, 3])
def test_branch_that_is_no_pair_is_named(place, value):
    """Guards against a tensor unpacked along its first dimension."""
    g = arguments()
    pairs = [(g[f"key_{branch}"], g[f"value_{branch}"]) for branch in ("cmp", "slc", "win")]
    pairs[place - 1] = value
    branch = ("cmp", "slc", "win")[place - 1]
    for backend in usable_backends():
        with pytest.raises(
            TypeError, match=rf"^key_{branch}, value_{branch}: expected a pair of tensors, got "
        ):
            trisparse.sparse_attention(g["query"], *pairs, g["gates"], CONFIG, backend=backend)


@pytest.mark.parametrize(
    ("backend", "error", "words"),
    [
        (3, TypeError, "string, got int 3"),
        (None, TypeError, "string, got NoneType"),
        ("cuda", ValueError, "reference, torch, cpu, triton; got 'cuda'"),
        ("Torch", ValueError, "got 'Torch'"),
        ("", ValueError, "got ''"),
    ],
)
@pytest.mark.parametrize("function", EVERY)
def test_unknown_backend_is_named(function, backend, error, words):
    """Guards against a misspelled backend that quietly means another."""
    g = arguments()
    with pytest.raises(error, match=rf"^backend: expected .*{re.escape(words)}"):
        pairs = [(g[f"key_{branch}"], g[f"value_{branch}"]) for branch in ("cmp", "slc", "win")]
        if function == WHOLE:
            trisparse.sparse_attention(g["query"], *pairs, g["gates"], CONFIG, backend=backend)
        elif function == SLC:
            trisparse.selected_attention(g["query"], *pairs[1], g["ids"], CONFIG, backend=backend)
        elif function == SELECT:
            trisparse.select_blocks(g["query"], g["key_cmp"], CONFIG, backend=backend)
        else:
            getattr(trisparse, function)(
                g["query"], *pairs[0 if function == CMP else 2], CONFIG, backend=backend
            )


def test_backend_that_cannot_run_says_why(monkeypatch):
    """Guards against a silent fallback from the backend that was asked for."""
    monkeypatch.setattr(trisparse.backends, "_why_not", {"triton": "no GPU", "torch": None}.get)
    with pytest.raises(NotImplementedError, match=r"^backend: 'triton' cannot run here: no GPU"):
        trisparse.backends.choose("triton")


def test_available_backends_name_a_reason_or_none():
    """Guards against a backend that is neither usable nor explained."""
    table = trisparse.available_backends()
    assert list(table) == ["reference", "torch", "cpu", "triton"]
    assert table["reference"] is None
    assert table["torch"] is None
    assert all(reason is None or (isinstance(reason, str) and reason) for reason in table.values())


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
