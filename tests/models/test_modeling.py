"""The language model inside transformers: saving, losses, masks, packing, training aids."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache

from trisparse.models import TrisparseForCausalLM, TrisparseModel
from trisparse.nn.compressor import Compressor
from trisparse.reference.compress import compress_blocks

from .tiny import VOCABULARY, ids_of, tiny_config, tiny_model

KINDS: dict[str, dict[str, Any]] = {
    "nsa": {},
    "shared_linear": {"shared_kv": True, "compressor": "linear", "value_head_dim": 6},
    "mixed": {"attention": ["nsa", "full"], "compressor": "mean"},
    "gated_full": {"attention": "gated_full"},
}


def logits_of(model: TrisparseForCausalLM, ids: Tensor, **others: Any) -> Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False, **others).logits


def close(actual: Tensor, expected: Tensor) -> None:
    """Equal but for the order of fp64 sums."""
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_model_loads_bit_for_bit(kind: str, tied: bool, tmp_path: Path) -> None:
    """Guards against weights lost, renamed, or initialised again after they were loaded."""
    model = tiny_model(tie_word_embeddings=tied, **KINDS[kind])
    model.save_pretrained(tmp_path)
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) != tied
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, TrisparseForCausalLM)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(logits_of(loaded, ids_of(2, 21)), logits_of(model, ids_of(2, 21)))


def test_auto_classes_build_ours(tmp_path: Path) -> None:
    """Guards the registration, on which every tool that knows only a path depends."""
    assert isinstance(AutoModelForCausalLM.from_config(tiny_config()), TrisparseForCausalLM)
    model = tiny_model()
    model.save_pretrained(tmp_path)
    body = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(body, TrisparseModel)
    with torch.no_grad():
        hidden = body(ids_of(1, 9)).last_hidden_state
        assert torch.equal(model.lm_head(hidden), logits_of(model, ids_of(1, 9)))


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_new_model_compresses_by_the_mean(kind: str) -> None:
    """Guards the compressor's start against transformers, which initialises its parts too."""
    model = TrisparseForCausalLM(tiny_config(compressor=kind))
    compressors = [module for module in model.modules() if isinstance(module, Compressor)]
    assert len(compressors) == 4
    tokens = torch.randn(1, 11, 2, 4, generator=torch.Generator().manual_seed(0))
    for compressor in compressors:
        expected = compress_blocks(tokens, compressor.config).mean(dim=2)
        torch.testing.assert_close(compressor(tokens), expected)


def test_missing_and_unexpected_weights_are_reported(tmp_path: Path) -> None:
    """Guards against a checkpoint of another model that loads without a word."""
    tiny_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = "model.layers.1.attention.compress_key.up"
    weights["model.stranger"] = weights.pop(lost)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = TrisparseForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {lost}
    assert set(info["unexpected_keys"]) == {"model.stranger"}
    kept = "model.layers.1.attention.compress_key.position"
    assert torch.equal(loaded.state_dict()[kept], weights[kept])


def test_loss_is_the_mean_over_shifted_labels_that_count() -> None:
    """Guards the shift, the ignored label and the mean."""
    model, ids = tiny_model().double(), ids_of(3, 14)
    labels = ids.clone()
    labels[0, 5:9] = -100
    labels[2, :] = -100
    out = model(ids, labels=labels)
    assert out.past_key_values is None
    # transformers computes the loss in fp32
    scores = out.logits.float().log_softmax(dim=-1)
    terms = [
        -scores[row, t, labels[row, t + 1]] for row in range(3) for t in range(13) if labels[row, t + 1] >= 0
    ]
    assert len(terms) == 22
    torch.testing.assert_close(out.loss, torch.stack(terms).mean().to(out.loss.dtype))
    part = model(ids, labels=labels, num_items_in_batch=44).loss
    torch.testing.assert_close(part, out.loss / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_left_and_right_padded_rows_are_as_if_alone(kind: str) -> None:
    """Guards masks: padding may change no real token, on either side."""
    model, ids, sizes = tiny_model(**KINDS[kind]).double(), ids_of(3, 17), [17, 11, 3]
    right = (torch.arange(17) < torch.tensor(sizes)[:, None]).long()
    to_right = logits_of(model, ids, attention_mask=right)
    to_left = logits_of(model, ids, attention_mask=right.flip(1))
    for row, size in enumerate(sizes):
        close(to_right[row : row + 1, :size], logits_of(model, ids[row : row + 1, :size]))
        close(to_left[row : row + 1, 17 - size :], logits_of(model, ids[row : row + 1, 17 - size :]))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_are_as_if_alone(kind: str) -> None:
    """Guards training on packed windows: no document may see another, in any row."""
    model, ids = tiny_model(**KINDS[kind]).double(), ids_of(2, 16)
    documents = [[(0, 5), (5, 16)], [(0, 15), (15, 16)]]
    position_ids = torch.stack([torch.cat([torch.arange(b - a) for a, b in row]) for row in documents])
    out = logits_of(model, ids, position_ids=position_ids)
    for row, parts in enumerate(documents):
        for start, stop in parts:
            close(out[row : row + 1, start:stop], logits_of(model, ids[row : row + 1, start:stop]))
    close(logits_of(model, ids, position_ids=torch.arange(16)[None]), logits_of(model, ids))


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_are_read_once_for_all_layers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a GPU from waiting in each layer."""
    model, ids = tiny_model(**KINDS[kind]), ids_of(1, 16)

    def refuse(*_: Any) -> None:
        raise AssertionError("a layer read the bounds")

    monkeypatch.setattr("trisparse.nn.attention.packed_places", refuse)
    monkeypatch.setattr("trisparse.baselines.full_attention.document_lengths", refuse)
    logits_of(model, ids, position_ids=torch.tensor([[*range(5), *range(11)]]))


def test_packed_documents_with_a_cache_are_refused() -> None:
    """Guards against documents that silently attend one another because a cache was asked for."""
    with pytest.raises(ValueError, match=r"^position_ids: .*use_cache=False"):
        tiny_model()(ids_of(1, 6), position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]), use_cache=True)


@pytest.mark.parametrize("positions", [[[0, 1, 3, 4]], [[1, 2, 3, 4]], [[3, 2, 1, 0]], [[0, 0, 2, 3]]])
def test_positions_that_do_not_count_are_refused(positions: list[list[int]]) -> None:
    """Guards against positions that the model would ignore."""
    with pytest.raises(ValueError, match=r"^position_ids: expected positions that count from 0"):
        tiny_model()(ids_of(1, 4), position_ids=torch.tensor(positions), use_cache=False)


@pytest.mark.parametrize("wrong", [VOCABULARY, -1])
def test_id_outside_the_vocabulary_is_refused_with_its_place(wrong: int) -> None:
    """Guards against an index error that does not say which token, or a negative id that wraps around."""
    ids = ids_of(2, 5)
    ids[1, 3] = wrong
    with pytest.raises(ValueError, match=rf"^input_ids: .*vocab_size={VOCABULARY}, got {wrong} at \[1, 3\]"):
        tiny_model()(ids)


def test_dense_mask_is_refused() -> None:
    """Guards against a 4-D mask that would be silently ignored."""
    with pytest.raises(ValueError, match=r"^attention_mask: .*got \[1, 1, 5, 5\].*no dense mask"):
        tiny_model()(ids_of(1, 5), attention_mask=torch.ones(1, 1, 5, 5))


@pytest.mark.parametrize("mask", [[1, 1, 0, 1, 1], [0, 1, 1, 0, 0]])
def test_mask_with_a_hole_is_refused(mask: list[int]) -> None:
    """Guards against masked tokens that are attended all the same."""
    with pytest.raises(ValueError, match=r"^attention_mask: expected left or right padding"):
        tiny_model()(ids_of(1, 5), attention_mask=torch.tensor([mask]), use_cache=False)


def test_right_padding_into_a_cache_is_refused() -> None:
    """Guards against padding that the next tokens would attend."""
    with pytest.raises(ValueError, match=r"^attention_mask: expected left padding"):
        tiny_model()(ids_of(1, 5), attention_mask=torch.tensor([[1, 1, 1, 0, 0]]), use_cache=True)


def test_embeddings_may_stand_for_ids_but_not_beside_them() -> None:
    """Guards the two ways in."""
    model, ids = tiny_model(), ids_of(2, 9)
    embeds = model.get_input_embeddings()(ids)
    with torch.no_grad():
        assert torch.equal(model(inputs_embeds=embeds, use_cache=False).logits, logits_of(model, ids))
    for both in ({}, {"input_ids": ids, "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match=r"^input_ids: expected either"):
            model(**both)


def test_only_the_wanted_logits_are_computed() -> None:
    """Guards prefill, which must not compute logits of the whole prompt, and its off-by-one."""
    model, ids = tiny_model(), ids_of(2, 9)
    whole = logits_of(model, ids)
    last = logits_of(model, ids, logits_to_keep=2)
    assert last.shape == (2, 2, VOCABULARY)
    torch.testing.assert_close(last, whole[:, -2:])


def test_checkpointing_gives_the_same_gradients() -> None:
    """Guards recomputation: the blocks must run again, and to the same result."""
    gradients, runs = [], []
    for checkpointed in (False, True):
        model = tiny_model().double().train()
        calls: list[int] = []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        if checkpointed:
            # the name since transformers 5.2x, and the one before
            enable = (
                getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            )
            enable()
        model(ids_of(2, 17), labels=ids_of(2, 17)).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        runs.append(len(calls))
    assert runs == [1, 2]
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-12)


def test_bf16_model_loads_and_stays_near_the_fp32_one(tmp_path: Path) -> None:
    """Guards mixed dtypes inside: rope in fp32, sums in fp32, everything handed on in bf16."""
    model = tiny_model(initializer_range=0.1)
    model.save_pretrained(tmp_path)
    low = TrisparseForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}
    actual, expected = logits_of(low, ids_of(2, 6)), logits_of(model, ids_of(2, 6))
    assert actual.dtype == torch.bfloat16
    # 6 tokens lie in the forced blocks, so that rounding cannot change the selection
    assert (actual.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("tied", [True, False])
def test_resized_vocabulary_keeps_the_old_logits(tied: bool) -> None:
    """Guards added tokens: head, embedding and the check of ids all must grow."""
    model, ids = tiny_model(tie_word_embeddings=tied), ids_of(1, 9)
    before = logits_of(model, ids)
    model.resize_token_embeddings(VOCABULARY + 3, mean_resizing=False)
    assert model.config.vocab_size == VOCABULARY + 3
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    after = logits_of(model, ids)
    assert after.shape[-1] == VOCABULARY + 3
    torch.testing.assert_close(after[..., :VOCABULARY], before)
    loss = model(ids + 3, labels=ids + 3).loss
    assert loss.isfinite()
    with pytest.raises(ValueError, match=rf"got {VOCABULARY + 3} at"):
        model(torch.tensor([[VOCABULARY + 3]]))


def test_recomputed_branches_give_the_same_gradients() -> None:
    """Guards the switch on its way from the configuration to the op."""
    gradients = []
    for recompute in (False, True):
        model = tiny_model(recompute=recompute)
        assert all(layer.attention.recompute == recompute for layer in model.model.layers)
        ids = ids_of(2, 23)
        model(ids, labels=ids).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for kept, again in zip(*gradients, strict=True):
        assert torch.equal(kept, again)


@pytest.mark.parametrize("packed", [False, True])
def test_hidden_states_are_given_where_asked_for(packed: bool) -> None:
    """Guards against an argument of transformers that gives None: n + 1 tensors, the last one normed."""
    model, ids = tiny_model(attention=["nsa", "full"]).double(), ids_of(2, 12)
    positions = torch.tensor([[*range(12)], [*range(5), *range(7)]]) if packed else None
    with torch.no_grad():
        outputs = model(ids, position_ids=positions, use_cache=False, output_hidden_states=True)
        first, second, last = outputs.hidden_states
        assert torch.equal(first, model.model.embed_tokens(ids))
        assert first.shape == second.shape == last.shape == (2, 12, 16)
        assert torch.equal(model.lm_head(last), outputs.logits)
        assert not torch.equal(second, first)
        assert model(ids, use_cache=False).hidden_states is None
        if not packed:
            cached = model(ids, use_cache=True, output_hidden_states=True)
            close(cached.hidden_states[1], second)
            as_tuple = model(ids, use_cache=False, return_dict=False)
            assert isinstance(as_tuple, tuple)
            assert torch.equal(as_tuple[0], outputs.logits)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"output_attentions": True}, "^output_attentions: expected False"),
        ({"cu_seq_lens_q": torch.tensor([0, 5, 12])}, "^cu_seq_lens_q: .*position_ids"),
        ({"cache_params": DynamicCache()}, "^cache_params: expected no cache under this name"),
    ],
)
def test_arguments_that_would_change_the_result_are_refused(argument: dict[str, Any], message: str) -> None:
    """Guards against documents that read one another because their bounds came in another argument."""
    model = tiny_model()
    for called in (model, model.model):
        with pytest.raises(ValueError, match=message):
            called(ids_of(1, 12), use_cache=False, **argument)
