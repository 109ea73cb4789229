"""Any sizes: either refused with the name of a field at fault, or served by every backend (row K27)."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import trisparse
from trisparse import SparseConfig
from trisparse.testing.inputs import Case, device_of, make_inputs, usable_backends

# on a GPU each of many configs would be compiled first
BACKENDS = [backend for backend in usable_backends(torch.float32) if device_of(backend) == "cpu"]
NAMES = [field.name for field in fields(SparseConfig)]
SETTINGS = settings(deadline=None, derandomize=True, database=None)
NO_INTS = (None, True, False, 1.0, 4.0, "4", float("nan"), (4,), [4], torch.tensor(4), 4 + 0j)
# small ones often fit one another, large ones are where sums and products overflow
SIZES = st.one_of(
    st.integers(-2, 12),
    st.sampled_from([2**power + more for power in (15, 31, 32, 40, 62, 63, 64, 200) for more in (-1, 0, 1)]),
)


def faults(sizes):
    """The rules of spec 3 and 4 that `sizes` breaks, each as the fields that may be named for it."""
    block, stride, select = (sizes[name] for name in NAMES[:3])
    least = {name: 0 if name in ("num_initial", "num_local") else 1 for name in NAMES}
    broken = [{name} for name in NAMES if sizes[name] < least[name]]
    broken += [{name} for name in NAMES if sizes[name] >= 2**63]
    if sizes["num_initial"] + sizes["num_local"] > sizes["num_selected"]:
        broken.append({"num_selected", "num_initial", "num_local"})
    if sizes["num_selected"] > 2**15:
        broken.append({"num_selected"})
    if stride > block or (stride > 0 and (block % stride or select % stride)):
        broken.append({"compress_stride", "compress_block", "select_block"})
    if block > select:
        broken.append({"compress_block", "select_block"})
    return broken


@st.composite
def right_sizes(draw):
    """Sizes that no rule forbids, most of them small, some as large as they may be.

    The reference's time and memory grow with l / d and l' / d, whatever the tokens are: those stay small.
    """
    stride = draw(st.one_of(st.integers(1, 5), st.sampled_from([2**31, 2**40, 2**60])))
    strides = draw(st.integers(1, 4))
    more = draw(st.integers(strides, 7))
    initial, local = (draw(st.integers(0, 3)) for _ in range(2))
    selected = max(1, initial + local)
    return SparseConfig(
        compress_block=stride * strides,
        compress_stride=stride,
        select_block=stride * more,
        num_selected=draw(st.one_of(st.integers(selected, selected + 3), st.just(2**15))),
        num_initial=initial,
        num_local=local,
        window=draw(st.one_of(st.integers(1, 30), st.sampled_from([2**31, 2**62, 2**63 - 1]))),
    )


@st.composite
def nearly_right_sizes(draw):
    """Sizes of which one may be wrong, most often by little: only one rule can then tell."""
    sizes = vars(draw(right_sizes())).copy()
    name = draw(st.sampled_from(NAMES))
    sizes[name] = draw(st.one_of(st.integers(sizes[name] - 9, sizes[name] + 9), SIZES))
    return sizes


@given(sizes=st.one_of(nearly_right_sizes(), st.fixed_dictionaries(dict.fromkeys(NAMES, SIZES))))
@settings(SETTINGS, max_examples=500)
def test_wrong_sizes_are_refused_by_the_name_of_one_at_fault(sizes):
    """Guards against a rule that is missing, or too strict, or whose message blames another field."""
    broken = faults(sizes)
    if not broken:
        assert vars(SparseConfig(**sizes)) == sizes
        return
    with pytest.raises(ValueError, match=r"^\w+: expected .*, got -?\d+$") as error:
        SparseConfig(**sizes)
    assert str(error.value).partition(":")[0] in set.union(*broken)


@given(name=st.sampled_from(NAMES), value=st.sampled_from(NO_INTS))
@settings(SETTINGS, max_examples=100)
def test_what_is_no_int_is_refused_by_its_field(name, value):
    """Guards against a bool or a float that is taken for a size, or an error from deep inside."""
    with pytest.raises(TypeError, match=rf"^{name}: expected an int, got {type(value).__name__} "):
        SparseConfig(**{name: value})


@given(config=right_sizes(), tokens=st.integers(0, 12), seed=st.integers(0, 9))
@settings(SETTINGS, max_examples=100)
def test_right_sizes_are_served_by_every_backend(config, tokens, seed):
    """Guards against a legal config that a backend refuses, crashes on, or takes for another one."""
    case = Case(
        name="fuzz", batch=1, tokens=tokens, heads=2, groups=1, head_dim=3, value_dim=2, config=config
    )
    rows = []
    for backend in BACKENDS:
        inputs = make_inputs(case, torch.float32, seed).leaves()
        ids = trisparse.select_blocks(inputs.query, inputs.compressed[0], config, backend=backend)
        out = trisparse.sparse_attention(*inputs.all_arguments, backend=backend)
        grads = torch.autograd.grad(out.sum(), inputs.tensors)
        assert all(x.isfinite().all() for x in (out, *grads))
        rows.append(((ids >= 0).sum(dim=-1).tolist(), ids.shape))
    assert all(row == rows[0] for row in rows)
