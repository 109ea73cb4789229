"""The byte-level tokenizer: ids are bytes, and every text comes back as it was."""

import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trisparse.data.tokenizer import (
    END_OF_DOCUMENT,
    END_OF_DOCUMENT_TEXT,
    PADDING,
    PADDING_TEXT,
    VOCAB_SIZE,
    byte_tokenizer,
    encode_bytes,
)

TRICKY_TEXTS = [
    "",
    " leading and trailing ",
    "\n\n\ttabs\r\nand\rlines\n",
    "NUL \x00 and DEL \x7f",
    "é ü 漢字 😀 👩‍👩‍👧 \u200b\ufeff\u2028",
    "spaces before marks . , ! ? n't 's",
    "def f(x):\n    return x  # double  spaces",
    f"a{END_OF_DOCUMENT_TEXT}b{PADDING_TEXT}",
    "\U0010ffff\ue000",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.mark.parametrize("text", TRICKY_TEXTS)
def test_tricky_text_is_its_bytes_and_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    """Guards against a decoder that tidies spaces, a prefix space, lost NULs and forged special tokens."""
    ids = tokenizer(text).input_ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_round_trips_and_equals_the_fast_path(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    """Guards against training on other ids than generation uses."""
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert encode_bytes(text.encode()).tolist() == ids


def test_each_byte_is_its_own_id(tokenizer: PreTrainedTokenizerFast) -> None:
    """Guards the vocabulary's order, also for the 13 bytes that never occur in UTF-8."""
    encoded = encode_bytes(bytes(range(256)))
    assert encoded.dtype == numpy.uint16
    assert encoded.tolist() == list(range(256))
    letters = {tokenizer.convert_ids_to_tokens(byte) for byte in range(256)}
    assert len(letters) == 256
    for byte in range(128):
        assert tokenizer.decode([byte]) == chr(byte)


def test_special_tokens_have_the_ids_that_the_corpus_uses(tokenizer: PreTrainedTokenizerFast) -> None:
    """Guards against ids that depend on the order in which transformers adds special tokens."""
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (END_OF_DOCUMENT, PADDING) == (256, 257)
    assert tokenizer.bos_token is None
    assert len(tokenizer) == 258 <= VOCAB_SIZE
    assert VOCAB_SIZE % 64 == 0


def test_special_tokens_are_left_out_of_decoded_text_on_request(tokenizer: PreTrainedTokenizerFast) -> None:
    """Guards against generated text that ends in a marker."""
    ids = [PADDING, *b"text", END_OF_DOCUMENT]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "text"
    assert tokenizer.decode(ids) == f"{PADDING_TEXT}text{END_OF_DOCUMENT_TEXT}"


def test_invalid_bytes_and_unused_ids_decode_without_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    """Guards generation: an untrained model emits broken UTF-8 and ids that stand for nothing."""
    assert tokenizer.decode([0x41, 0xFF, 0x42, 0xC3]) == "A\ufffdB\ufffd"
    assert tokenizer.decode([0x41, 258, VOCAB_SIZE - 1, 0x42]) == "AB"


def test_batch_is_padded_on_the_left(tokenizer: PreTrainedTokenizerFast) -> None:
    """Guards decoder-only generation, which continues from the last column."""
    batch = tokenizer(["a", "abc"], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"] == [[PADDING, PADDING, 97], [97, 98, 99]]
    assert batch["attention_mask"] == [[0, 0, 1], [1, 1, 1]]


def test_saved_tokenizer_is_loaded_by_auto_tokenizer(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Guards a saved checkpoint: behaviour that only lives in the constructor's arguments would be lost."""
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.eos_token_id, loaded.pad_token_id, loaded.padding_side) == (256, 257, "left")
    assert loaded.model_input_names == ["input_ids", "attention_mask"]
    for text in TRICKY_TEXTS:
        assert loaded(text).input_ids == list(text.encode())
        assert loaded.decode(loaded(text).input_ids) == text


def test_reading_a_corpus_imports_neither_transformers_nor_tokenizers() -> None:
    """Guards the start of every command against seconds of imports that only the tokenizer needs."""
    program = (
        "import sys, trisparse.data.corpus, trisparse.data.packing;"
        "sys.exit(', '.join({'transformers', 'tokenizers'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.strip()) == (0, "")


def test_ids_of_no_bytes_are_an_empty_array() -> None:
    """Guards the empty prompt and the empty file."""
    assert encode_bytes(b"").shape == (0,)
