"""Wrong arguments: the same error on every backend, beginning with the argument's name."""

import re

import pytest
import torch
from arguments import CMP, CONFIG, EVERY, SELECT, arguments, call
from wrong_arguments import BAD, PACKED_BAD, bounds

import trisparse
from trisparse.testing.inputs import usable_backends

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
