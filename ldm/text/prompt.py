"""What a prompt says about itself: which words count more or less, and where a chunk ends.

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
"""What a pair of round brackets multiplies by, and a pair of square ones divides by."""

MOST_NESTED = 10_000
"""Brackets open at once; beyond it 1.1 to their number is no number any more."""

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
    """A stretch of a prompt whose words all have one weight; 1 is as it is."""

    text: str
    weight: float = 1.0


def parse(text: str, syntax: str = "a1111") -> list[list[Piece]]:
    """The pieces of a prompt, in one list more than it has words BREAK.

    `(x)` is 1.1 times as strong, `[x]` 1/1.1 times, `(x:1.3)` 1.3 times; inside each other they
    multiply. A backslash before a bracket or a backslash makes it a plain character. A bracket
    that is never closed reaches to the end of the prompt, one that was never opened is a
    character. Another backslash is dropped; in the syntax "weights" of earlier records it is a
    character. In the syntax "plain" everything is. Raises JobError where a weight is no number.
    """
    if syntax == "plain":
        return [[Piece(text)] if text else []]
    return _Reader(text, keeps_backslash=syntax == "weights").parts()


class _Reader:
    """The pieces as they are read: brackets of each kind are counted on their own."""

    def __init__(self, text: str, *, keeps_backslash: bool) -> None:
        self.text, self.keeps_backslash = text, keeps_backslash
        self.texts: list[str] = []
        self.weights: list[float] = []
        self.ends: list[int] = []  # how many pieces there were at each BREAK
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
        kind, found = mark.lastgroup, mark[mark.lastgroup or 0]
        if kind == "escaped":
            self._add(found)
        elif kind == "lone" and not self.keeps_backslash:
            pass
        elif kind == "end":
            self.ends.append(len(self.texts))
        elif kind == "weight" and self.opened["("]:
            self._close("(", float(found))
        elif kind == "bracket" and found in self.opened:
            self.opened[found].append(len(self.texts))
            if len(self.opened[found]) > MOST_NESTED:
                raise JobError("a weight in the prompt is beyond all numbers: use fewer brackets")
        elif kind == "bracket" and self.opened[_OPENING[found]]:
            self._close(_OPENING[found])
        else:
            self._add(mark[0])

    def _add(self, text: str) -> None:
        if text:
            self.texts.append(text)
            self.weights.append(1.0)

    def _close(self, bracket: str, factor: float | None = None) -> None:
        """Multiply all pieces since the last open bracket of a kind."""
        if factor is None:
            factor = EMPHASIS if bracket == "(" else 1 / EMPHASIS
        for index in range(self.opened[bracket].pop(), len(self.weights)):
            self.weights[index] *= factor

    def _pieces(self, first: int, last: int) -> Iterator[Piece]:
        """The pieces of one part; neighbours of one weight are one, for the tokenizer's sake."""
        if not all(math.isfinite(weight) for weight in self.weights[first:last]):
            raise JobError("a weight in the prompt is beyond all numbers: use fewer brackets")
        pairs = zip(self.texts[first:last], self.weights[first:last], strict=True)
        for weight, members in groupby(pairs, key=lambda pair: pair[1]):
            yield Piece("".join(text for text, _ in members), weight)
