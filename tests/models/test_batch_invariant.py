"""The batch-invariant mode over a whole model: decoded tokens get the very logits of the forward."""

import pytest
import torch

from trisparse.invariance import batch_invariant
from trisparse.testing.inputs import usable_backends

from .generated import KINDS
from .tiny import ids_of, tiny_model


@pytest.mark.skipif("cpu" not in usable_backends(), reason="the CPU kernels cannot run here")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_decoded_logits_have_the_bits_of_the_whole(dtype: torch.dtype, kind: str) -> None:
    """Guards embedding, norms, SwiGLU and head beside the attention, token by token after a prefill."""
    model = tiny_model(**KINDS[kind]).to(dtype)
    ids = ids_of(3, 40)
    with torch.no_grad(), batch_invariant():
        whole = model(ids, use_cache=False).logits
        outputs = model(ids[:, :25], use_cache=True)
        parts = [outputs.logits]
        for place in range(25, 40):
            step = ids[:, place : place + 1]
            outputs = model(step, past_key_values=outputs.past_key_values)
            parts.append(outputs.logits)
        alone = model(ids[1:2], use_cache=False).logits
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert torch.equal(alone, whole[1:2])
