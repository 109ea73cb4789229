"""Arguments with random faults: a documented error, the same from every backend, or a result (row K27)."""

import re

import pytest
import torch
from arguments import EVERY, arguments, call
from hypothesis import given, note, settings
from hypothesis import strategies as st

from trisparse.testing.inputs import usable_backends

BACKENDS = usable_backends(torch.float32)
TENSORS = [name for name, value in arguments().items() if isinstance(value, torch.Tensor)]
BRANCHES = (("key_cmp", "value_cmp"), ("key_slc", "value_slc"), ("key_win", "value_win"))
SIZES = (0, 1, 2, 3, 5, 17)
DTYPES = (torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn)
LAYOUTS = {
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
    "conj": lambda x: x.conj(),
    "strided": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
}
NUMBERS = (0, 1, 4, -1, 2**63, 3.5, -0.0, 1e30, float("nan"), float("inf"), True)
JUNK = (None, *NUMBERS, "x", b"x", (), [], {}, object(), torch.tensor(1.0))
# an error begins with one or two of these
NAMES = {*arguments(), "key", "value"}
ERRORS = (TypeError, ValueError, NotImplementedError)


def with_size(dim, size):
    """A change of a tensor that leaves its dtype."""

    def change(x):
        shape = list(x.shape)
        shape[dim] = size
        return torch.zeros(shape, dtype=x.dtype)

    return change


@st.composite
def faults(draw):
    """Names of arguments, what is done to them, and the function that does it."""
    kind = draw(st.sampled_from(["size", "sizes", "rank", "dtype", "layout", "number", "junk", "bounds"]))
    name = draw(st.sampled_from(TENSORS))
    if kind in ("size", "sizes"):
        dim, size = draw(st.integers(0, 3)), draw(st.sampled_from(SIZES))
        names = (name,) if kind == "size" else draw(st.sampled_from(BRANCHES))
        return names, f"dimension {dim} is {size}", with_size(dim, size)
    if kind == "rank":
        more = draw(st.booleans())
        return (name,), f"one more: {more}", (lambda x: x[None]) if more else (lambda x: x[0])
    if kind == "dtype":
        dtype = draw(st.sampled_from(DTYPES))
        return (name,), str(dtype), lambda x: x.to(dtype)
    if kind == "layout":
        how = draw(st.sampled_from(sorted(LAYOUTS)))
        return (name,), how, LAYOUTS[how]
    if kind == "bounds":
        bounds = draw(st.lists(st.integers(-1, 18), max_size=4))
        return ("cu_seqlens",), f"{bounds}", lambda _: torch.tensor(bounds, dtype=torch.int32)
    if kind == "number":
        name, value = draw(st.sampled_from(["scale", "query_start"])), draw(st.sampled_from(NUMBERS))
    else:
        name, value = draw(st.sampled_from(["cu_seqlens", "config", *TENSORS])), draw(st.sampled_from(JUNK))
    return (name,), repr(value), lambda _: value


def outcome(function, given, backend):
    """Shapes of the results, which are numbers, or type and text of the error."""
    try:
        results = call(function, given, backend)
    except ERRORS as error:
        return type(error).__name__, str(error).replace("cuda:0", "cpu")
    results = results if isinstance(results, tuple) else (results,)
    assert not any(x.isnan().any() for x in results)
    return [list(x.shape) for x in results]


@pytest.mark.parametrize("function", EVERY)
@given(
    batch=st.sampled_from([1, 2]),
    drawn=st.lists(faults(), min_size=1, max_size=2, unique_by=lambda each: each[0][0]),
)
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_any_fault_gives_a_documented_error_or_a_result_everywhere(function, batch, drawn):
    """Guards against errors from deep inside, crashes, and backends that refuse what others take."""
    given_all = arguments(batch)
    for names, what, change in drawn:
        note(f"{names}: {what}")
        for name in names:
            # the other fault may have left nothing that this one can be done to
            if isinstance(given_all[name], torch.Tensor) == (name in TENSORS):
                given_all[name] = change(given_all[name])
    outcomes = [outcome(function, given_all, backend) for backend in BACKENDS]
    assert all(one == outcomes[0] for one in outcomes), outcomes
    if isinstance(outcomes[0], tuple):
        message = outcomes[0][1]
        found = re.match(r"^([\w, ]+): expected ", message)
        assert found, message
        assert {*found[1].split(", ")} <= NAMES, message
        assert "\n" not in message
