"""The prompt syntax: weights of words, and breaks between chunks.

The grammar is that of AUTOMATIC1111's web UI (its wiki: Attention/emphasis, Infinite prompt
length). docs/prompts.md has all of it with examples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

from ldm.errors import JobError

EMPHASIS = 1.1
"""The factor of a pair of round brackets, and the divisor of a pair of square ones."""

MOST_NESTED = 10_000
"""The limit of open brackets; a higher power of 1.1 overflows."""

_MARK = re.compile(
    r"\\(?P<escaped>[()\[\]\\])"
    r"|:\s*(?P<weight>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)"
    r"|(?P<bracket>[()\[\]])"
    r"|(?P<end>\bBREAK\b)"
    r"|(?P<lone>\\)"
)
_OPENING = {")": "(", "]": "["}


@dataclass(frozen=True)
class Piece:
    """A part of a prompt whose words all have the same weight; 1 is neutral."""

    text: str
    weight: float = 1.0


def parse(text: str, syntax: str = "a1111") -> list[list[Piece]]:
    """Parse a prompt into its pieces, with one list per part between words BREAK.

    `(x)` is 1.1 times as strong, `[x]` 1/1.1 times, `(x:1.3)` 1.3 times; nested weights multiply.
    A backslash makes a bracket or a backslash a plain character. A bracket that is never closed
    extends to the end of the prompt; one that was never opened is a plain character. Any other
    backslash is dropped, and kept in the syntax "weights" of earlier records. In the syntax
    "plain" all characters are plain. Raises JobError for a weight that overflows.
    """
    if syntax == "plain":
        return [[Piece(text)] if text else []]
    return _Reader(text, keeps_backslash=syntax == "weights").parts()


class _Reader:
    """Collects the pieces; each kind of bracket is counted separately."""

    def __init__(self, text: str, *, keeps_backslash: bool) -> None:
        self.text, self.keeps_backslash = text, keeps_backslash
        self.texts: list[str] = []
        self.weights: list[float] = []
        self.ends: list[int] = []  # the number of pieces before each BREAK
        self.opened: dict[str, list[int]] = {"(": [], "[": []}

    def parts(self) -> list[list[Piece]]:
        place = 0
        for mark in _MARK.finditer(self.text):
            self._add(self.text[place : mark.start()])
            self._read(mark)
            place = mark.end()
        self._add(self.text[place:])
        for bracket in ("(", "["):
            while self.opened[bracket]:
                self._close(bracket)
        bounds = [0, *self.ends, len(self.texts)]
        return [list(self._pieces(first, last)) for first, last in pairwise(bounds)]

    def _read(self, mark: re.Match[str]) -> None:
        kind, symbol = mark.lastgroup, mark[mark.lastgroup or 0]
        if kind == "escaped":
            self._add(symbol)
        elif kind == "lone" and not self.keeps_backslash:
            pass
        elif kind == "end":
            self.ends.append(len(self.texts))
        elif kind == "weight" and self.opened["("]:
            self._close("(", float(symbol))
        elif kind == "bracket" and symbol in self.opened:
            self.opened[symbol].append(len(self.texts))
            if len(self.opened[symbol]) > MOST_NESTED:
                raise JobError("a weight in the prompt overflows: use fewer brackets")
        elif kind == "bracket" and self.opened[_OPENING[symbol]]:
            self._close(_OPENING[symbol])
        else:
            self._add(mark[0])

    def _add(self, text: str) -> None:
        if text:
            self.texts.append(text)
            self.weights.append(1.0)

    def _close(self, bracket: str, factor: float | None = None) -> None:
        """Multiply the weights of all pieces since the last open bracket of a kind."""
        if factor is None:
            factor = EMPHASIS if bracket == "(" else 1 / EMPHASIS
        for index in range(self.opened[bracket].pop(), len(self.weights)):
            self.weights[index] *= factor

    def _pieces(self, first: int, last: int) -> Iterator[Piece]:
        """The pieces of one part; neighbours of equal weight are merged, for the tokenizer."""
        if not all(math.isfinite(weight) for weight in self.weights[first:last]):
            raise JobError("a weight in the prompt overflows: use fewer brackets")
        pairs = zip(self.texts[first:last], self.weights[first:last], strict=True)
        for weight, members in groupby(pairs, key=lambda pair: pair[1]):
            yield Piece("".join(text for text, _ in members), weight)
