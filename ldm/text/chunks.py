"""Split prompts into the chunks of tokens that a text encoder processes one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ldm.text.comfy import parse_comfy
from ldm.text.prompt import Piece, parse
from ldm.text.tokenizer import Tokenizer

BACKTRACK = 20
"""The number of tokens at the end of a full chunk to search for a comma; AUTOMATIC1111's
`comma_padding_backtrack`, and its default."""


@dataclass(frozen=True)
class Token:
    """A token, its weight, and the characters of the prompt that it stands for."""

    id: int
    weight: float
    text: str


@dataclass(frozen=True)
class Chunked:
    """The chunks of a prompt, at least one, without start, end and padding; `cut` is the truncated
    text, or ""."""

    chunks: list[list[Token]]
    cut: str = ""

    @property
    def count(self) -> int:
        """The number of tokens in the prompt."""
        return sum(map(len, self.chunks))

    def filled(self, count: int) -> list[list[Token]]:
        """The chunks, padded with empty ones to a total of `count`."""
        return [*self.chunks, *([] for _ in range(count - len(self.chunks)))]


def chunked(text: str, tokenizer: Tokenizer, room: int, syntax: str = "a1111") -> Chunked:
    """Split a prompt into chunks of at most `room` tokens; syntax "plain" truncates it to one.

    A chunk ends at BREAK, or when it is full. If a comma is near its end, the tokens after the
    comma move to the next chunk, unless a comma comes next. In the syntax "comfy" a chunk ends
    before a word that does not fit.
    """
    if syntax == "plain":
        tokens = tokenizer.split(text)
        return Chunked([list(_tokens([Piece(text)], tokenizer))[:room]], tokens.tail(room))
    if syntax == "comfy":
        return Chunked(list(_filled_by_words(text, tokenizer, room)))
    comma = tokenizer.encode(",")[0]
    *parts, last = (list(_tokens(pieces, tokenizer)) for pieces in parse(text, syntax))
    chunks = [chunk for part in parts for chunk in _filled(part, room, comma)]
    if last or not chunks:  # a BREAK at the very end adds nothing
        chunks += _filled(last, room, comma)
    return Chunked(chunks)


def rows(
    chunks: Sequence[Sequence[Token]], tokenizer: Tokenizer, pad: int, length: int
) -> tuple[list[list[int]], list[list[float]]]:
    """Ids and weights [N][length] of chunks with start, end and padding, whose weights are 1."""
    ids, weights = [], []
    for chunk in chunks:
        spare = length - len(chunk) - 2
        named = [tokenizer.start, *(token.id for token in chunk), tokenizer.end]
        ids.append(named + [pad] * spare)
        weights.append([1.0, *(token.weight for token in chunk), 1.0] + [1.0] * spare)
    return ids, weights


def _tokens(pieces: Sequence[Piece], tokenizer: Tokenizer) -> Iterator[Token]:
    """The tokens of pieces; no word continues from one piece to the next."""
    for piece in pieces:
        tokens = tokenizer.split(piece.text)
        for token, (first, last) in zip(tokens.ids, tokens.spans, strict=True):
            yield Token(token, piece.weight, tokens.text[first:last])


LONG_WORD = 8
"""Tokens from which on a word may be divided between two chunks, as in ComfyUI."""


def _filled_by_words(text: str, tokenizer: Tokenizer, room: int) -> Iterator[list[Token]]:
    """The chunks of a prompt as ComfyUI fills them, at least one."""
    chunk: list[Token] = []
    for piece in parse_comfy(text):
        for word in piece.text.split():
            tokens = list(_tokens([Piece(word, piece.weight)], tokenizer))
            is_long = len(tokens) >= LONG_WORD
            while len(chunk) + len(tokens) > room:
                part = room - len(chunk) if is_long or not chunk else 0
                yield [*chunk, *tokens[:part]]
                chunk, tokens = [], tokens[part:]
            chunk += tokens
    yield chunk


def _filled(tokens: list[Token], room: int, comma: int) -> Iterator[list[Token]]:
    """Split one part into chunks; the last one holds the remainder."""
    while len(tokens) > room > 0:
        end = room
        if tokens[room].id != comma:
            near = range(max(0, room - BACKTRACK), room)
            end = max((place + 1 for place in near if tokens[place].id == comma), default=room)
        yield tokens[:end]
        tokens = tokens[end:]
    yield tokens
