"""Right arguments of the five functions by name, and how each function takes them."""

import torch

import trisparse
from trisparse import SparseConfig
from trisparse.testing.inputs import Case, device_of, make_inputs

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
