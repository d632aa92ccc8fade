"""The SentencePiece tokenizer of T5 (arXiv 1808.06226), with Google's vocabulary of 32,000 pieces.

The vocabulary is T5 v1.1's `spiece.model` (Google, Apache License 2.0), a protocol buffer; the
pieces and the normalizer's table are read from it and handed to the `tokenizers` library.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import Unigram

from ldm.errors import LdmError
from ldm.text.tokenizer import Tokens, whole, word_numbers

VOCABULARY = Path(__file__).with_name("t5-spiece.model")
# Numbers of fields in sentencepiece_model.proto.
_PIECE, _NORMALIZER = 1, 3
_TEXT, _SCORE, _CHARSMAP = 1, 2, 2
_UNKNOWN = 2  # the third piece, after the pad and end tokens


class SentencePieceTokenizer:
    """T5's tokens; `end` follows a text, `pad` fills it up, and nothing precedes it."""

    pad = 0
    end = 1

    def __init__(self, vocabulary: Path = VOCABULARY) -> None:
        pieces, charsmap = _read(vocabulary)
        self._backend = Backend(Unigram(pieces, _UNKNOWN, byte_fallback=False))
        self._backend.normalizer = normalizers.Sequence(
            [
                normalizers.Precompiled(charsmap),
                normalizers.Strip(left=False, right=True),
                normalizers.Replace(Regex(" {2,}"), "\N{LOWER ONE EIGHTH BLOCK}"),
            ]
        )
        self._backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")

    def split(self, text: str) -> Tokens:
        """The tokens of a text and their positions in it. Unpaired surrogates count as U+FFFD."""
        text = whole(text)
        encoding = self._backend.encode(text, add_special_tokens=False)
        return Tokens(text, encoding.ids, encoding.offsets, word_numbers(encoding))

    def encode(self, text: str, length: int) -> tuple[list[int], str]:
        """Ids [length] with end and padding, and the truncated part of the text, or ''."""
        tokens = self.split(text)
        ids = [*tokens.ids[: length - 1], self.end]
        return ids + [self.pad] * (length - len(ids)), tokens.tail(length - 1)


@cache
def t5_tokenizer() -> SentencePieceTokenizer:
    """The tokenizer of T5 v1.1, built on the first call; raises LdmError without its vocabulary."""
    return SentencePieceTokenizer()


def _read(path: Path) -> tuple[list[tuple[str, float]], bytes]:
    """The pieces with their scores, and the table by which texts are normalized."""
    pieces: list[tuple[str, float]] = []
    charsmap = b""
    try:
        for number, value in _fields(path.read_bytes()):
            if number == _PIECE:
                parts = dict(_fields(value))
                (score,) = struct.unpack("<f", parts[_SCORE])
                pieces.append((parts[_TEXT].decode(), score))
            elif number == _NORMALIZER:
                charsmap = dict(_fields(value)).get(_CHARSMAP, b"")
    except (OSError, LookupError, ValueError, struct.error):
        raise LdmError(f"{path}: missing or damaged; install the package again") from None
    return pieces, charsmap


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The numbers and contents of a message's fields; those that are whole numbers are skipped."""
    place = 0
    while place < len(data):
        key, place = _whole_number(data, place)
        kind = key & 7
        if kind == 0:
            _, place = _whole_number(data, place)
            continue
        size, place = _whole_number(data, place) if kind == 2 else ({1: 8, 5: 4}[kind], place)
        yield key >> 3, data[place : place + size]
        place += size


def _whole_number(data: bytes, place: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and the place after it."""
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place
