"""The byte-level tokenizer: a token is a byte, so any text fits and nothing is downloaded."""

from typing import TYPE_CHECKING

import numpy
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_DOCUMENT = 256
PADDING = 257

# 258 tokens are in use; a multiple of 64 keeps the embedding and the output matrix on even tile sizes
VOCAB_SIZE = 320

END_OF_DOCUMENT_TEXT = "<|end_of_document|>"
PADDING_TEXT = "<|padding|>"


def encode_bytes(data: bytes) -> NDArray[numpy.uint16]:
    """The token ids of raw bytes, uint16 `[len(data)]`: each byte is its own id.

    Equal to what `byte_tokenizer()` makes of valid UTF-8. Bytes that are not UTF-8 are tokens like any other.
    """
    return numpy.frombuffer(data, dtype=numpy.uint8).astype(numpy.uint16)


def byte_tokenizer() -> "PreTrainedTokenizerFast":
    """A transformers tokenizer whose ids 0..255 are the bytes of the text's UTF-8 form.

    `END_OF_DOCUMENT` is its end-of-sequence token and `PADDING` its padding token, put on the left. Encoding
    adds neither, and text that spells one of them is encoded as plain bytes: no text can forge the end of a
    document. Decoding returns the encoded text exactly. Bytes that are not valid UTF-8 decode to U+FFFD; ids
    from 258 up to `VOCAB_SIZE`, which only fill the matrix, decode to nothing.
    """
    # takes seconds, and the corpus path never needs it
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: byte for byte, letter in enumerate(_byte_letters())}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    # the order of this list is what gives them the ids 256 and 257
    core.add_special_tokens([END_OF_DOCUMENT_TEXT, PADDING_TEXT])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END_OF_DOCUMENT_TEXT,
        pad_token=PADDING_TEXT,
        padding_side="left",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _byte_letters() -> list[str]:
    """The printable letters that stand for bytes 0..255 in a ByteLevel vocabulary, in that order."""
    # GPT-2's table: printable Latin-1 stands for itself, the other bytes take the letters from U+0100 on. The
    # `tokenizers` library uses it too but hands out only the unordered set.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(0x100 + hidden.index(byte)) for byte in range(256)]
