"""The byte-level BPE of CLIP (arXiv 2103.00020), under the rules of the two libraries that use it.

Both share one vocabulary of 49408 tokens and differ in how they clean a text before splitting it.
The vocabulary is read from the installed package open_clip, which is located but never imported.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Encoding, Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from ldm.errors import LdmError

if TYPE_CHECKING:
    import regex

START = 49406
END = 49407
LENGTH = 77
"""CLIP's context length in tokens, including the start and end tokens."""

_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
_PLAIN_TOKENS = END + 1 - 2
_BYTES = 256
_WORD_END = "</w>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class Tokens:
    """A text's token ids without start and end, and the position of each token in `text`.

    `text` is the user's text, perhaps cleaned. Token i covers its characters `spans[i]` and belongs
    to the word `words[i]`.
    """

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]
    words: list[int]

    def tail(self, first: int) -> str:
        """The text from token `first` on, without surrounding space; '' if there are no tokens."""
        return self.text[self.spans[first][0] :].strip() if first < len(self.ids) else ""

    def words_outside(self, known: frozenset[int]) -> list[str]:
        """The words with a token that is not in `known`, each once, in order."""
        outside: dict[str, None] = {}
        for _, members in groupby(range(len(self.ids)), key=lambda i: self.words[i]):
            tokens = list(members)
            if any(self.ids[i] not in known for i in tokens):
                outside[self.text[self.spans[tokens[0]][0] : self.spans[tokens[-1]][1]]] = None
        return list(outside)


class Tokenizer(ABC):
    """Turns text into token ids; `start` and `end` are the ids around a text, CLIP's by default."""

    start = START
    end = END

    @abstractmethod
    def split(self, text: str) -> Tokens:
        """The tokens of a text and their positions in it. Unpaired surrogates count as U+FFFD."""

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without start and end."""
        return self.split(text).ids

    def batch(
        self, texts: Sequence[str], pad: int, length: int = LENGTH
    ) -> tuple[list[list[int]], list[str]]:
        """Ids [B][length] with start, end and padding, and the truncated part of each text, or ''.

        A text that is too long is truncated to its first length - 2 tokens and the end token.
        """
        split = [self.split(text) for text in texts]
        room = length - 2
        ids = [[self.start, *tokens.ids[:room], self.end] for tokens in split]
        padded = [row + [pad] * (length - len(row)) for row in ids]
        return padded, [tokens.tail(room) for tokens in split]


class ClipTokenizer(Tokenizer):
    """The rules of the CLIPTokenizer of 2022: text repaired by ftfy, NFC, lower case.

    That was transformers' slow one, which repaired where ftfy was installed, as the originals'
    environment had it: curly quotes, ligatures and full-width letters become plain ones.
    """

    def __init__(self) -> None:
        specials = ("<|startoftext|>", "<|endoftext|>")
        self._backend = _backend(specials)
        self._backend.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        named = "|".join(name.replace("|", r"\|") for name in specials)
        self._backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(f"{named}|{_WORDS}"), behavior="removed", invert=True),
                # It splits again, by GPT-2's rules, which breaks up special tokens in odd case.
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )

    def split(self, text: str) -> Tokens:
        text = whole(_repaired(text))
        encoding = self._backend.encode(text, add_special_tokens=False)
        return Tokens(text, encoding.ids, encoding.offsets, word_numbers(encoding))


class OpenClipTokenizer(Tokenizer):
    """The rules of open_clip: fix mojibake, unescape HTML, collapse white space, lower case."""

    def __init__(self) -> None:
        import regex

        specials = ("<start_of_text>", "<end_of_text>")
        self._backend = _backend(specials)
        self._backend.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=False, use_regex=False
        )
        # open_clip finds words with this library, which has its own Unicode tables.
        self._words: regex.Pattern[str] = regex.compile(
            "|".join([*specials, _WORDS]), regex.IGNORECASE
        )

    def split(self, text: str) -> Tokens:
        cleaned, lowered, places = self._clean(text)
        matches = list(self._words.finditer(lowered))
        encoding = self._backend.encode(
            [match.group() for match in matches], is_pretokenized=True, add_special_tokens=False
        )
        words = word_numbers(encoding)
        starts = [matches[word].start() for word in words]
        spans = [
            (places[start + low], places[start + high])
            for start, (low, high) in zip(starts, encoding.offsets, strict=True)
        ]
        return Tokens(cleaned, encoding.ids, spans, words)

    @staticmethod
    def _clean(text: str) -> tuple[str, str, list[int]]:
        """The cleaned text, its lower case, and the cleaned position of each lowered one."""
        import ftfy

        cleaned = html.unescape(html.unescape(ftfy.fix_text(text)))
        cleaned = " ".join(whole(cleaned).split())
        lowered = cleaned.lower()
        widths = [len(char.lower()) for char in cleaned]
        places = [place for place, width in enumerate(widths) for _ in range(width)]
        return cleaned, lowered, [*places, len(cleaned)]


@cache
def clip_tokenizer() -> Tokenizer:
    """The tokenizer of FrozenCLIPEmbedder, built on the first call."""
    return ClipTokenizer()


@cache
def open_clip_tokenizer() -> Tokenizer:
    """The tokenizer of FrozenOpenCLIPEmbedder, built on the first call."""
    return OpenClipTokenizer()


def whole(text: str) -> str:
    """A text without unpaired surrogates, which come from file names and cannot be UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _repaired(text: str) -> str:
    """Repair a text with ftfy; plain ASCII needs no repair, which spares the import."""
    if text.isascii() and "&" not in text and (text.isprintable() or not text):
        return text
    import ftfy

    return ftfy.fix_text(text)


def word_numbers(encoding: Encoding) -> list[int]:
    """The index of each token's word; -1 for tokens that a post-processor adds."""
    return [-1 if word is None else word for word in encoding.word_ids]


def vocabulary_file() -> Path:
    """The vocabulary in the installed package open_clip; raises LdmError if it is not there."""
    spec = importlib.util.find_spec("open_clip")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / _VOCABULARY
        if path.is_file():
            return path
    raise LdmError(f"{_VOCABULARY} is missing: pip install open_clip_torch")


def vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """The names of tokens 0..49405 and the merges that make them, best first."""
    with gzip.open(vocabulary_file(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    merges: list[tuple[str, str]] = []
    for line in lines[1 : 1 + _PLAIN_TOKENS - 2 * _BYTES]:  # the first line is a title
        left, right = line.split()
        merges.append((left, right))
    letters = _byte_letters()
    words = [letter + _WORD_END for letter in letters]
    return [*letters, *words, *(left + right for left, right in merges)], merges


def _byte_letters() -> list[str]:
    """A visible character for each byte, in the vocabulary's order.

    Bytes that are visible in Latin-1 stand for themselves and come first; the others follow,
    written as the characters from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, visible), *(chr(0x100 + i) for i in range(_BYTES - len(visible)))]


def _backend(specials: tuple[str, str]) -> Backend:
    names, merges = vocabulary()
    ids = {name: i for i, name in enumerate([*names, *specials])}
    backend = Backend(
        BPE(vocab=ids, merges=merges, end_of_word_suffix=_WORD_END, unk_token=specials[1])
    )
    backend.add_special_tokens(list(specials))
    return backend
