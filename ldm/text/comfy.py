"""Prompts as ComfyUI reads them: round brackets are weights, and nothing else is special.

Source of the rules: comfy/sd1_clip.py of ComfyUI.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import suppress

from ldm.errors import JobError
from ldm.text.prompt import EMPHASIS, Piece

MOST_NESTED = 200
"""Brackets inside each other; more would be no prompt that anybody wrote."""
_ESCAPED = re.compile(r"\\([()])")
_HIDDEN = {"(": "\ue000", ")": "\ue001"}  # private characters, which stand for escaped brackets


def parse_comfy(text: str) -> list[Piece]:
    """The pieces of a prompt.

    `(x)` is 1.1 times as strong as what is around it, `(x:1.3)` has the weight 1.3 whatever is
    around it. `\\(` and `\\)` are characters. Raises JobError for too many brackets.
    """
    hidden = _ESCAPED.sub(lambda found: _HIDDEN[found[1]], text)
    pieces: list[Piece] = []
    for piece in _weighted(hidden, 1.0, 0):
        plain = piece.text.replace(_HIDDEN["("], "(").replace(_HIDDEN[")"], ")")
        if pieces and pieces[-1].weight == piece.weight:
            pieces[-1] = Piece(pieces[-1].text + plain, piece.weight)
        elif plain:
            pieces.append(Piece(plain, piece.weight))
    return pieces


def _weighted(text: str, weight: float, depth: int) -> Iterator[Piece]:
    if depth > MOST_NESTED:
        raise JobError(f"a prompt has at most {MOST_NESTED} brackets inside each other")
    for part in _groups(text):
        if not (len(part) > 1 and part[0] == "(" and part[-1] == ")"):
            yield Piece(part, weight)
            continue
        inside, own = part[1:-1], weight * EMPHASIS
        words, mark, number = inside.rpartition(":")
        if mark and words:
            with suppress(ValueError):
                inside, own = words, float(number)
        if not math.isfinite(own):
            raise JobError(f"a weight in the prompt must be a number: {part[:40]!r}")
        yield from _weighted(inside, own, depth + 1)


def _groups(text: str) -> Iterator[str]:
    """What stands in outer brackets, with them, and what stands between."""
    start, depth = 0, 0
    for place, char in enumerate(text):
        if char == "(":
            if depth == 0 and place > start:
                yield text[start:place]
                start = place
            depth += 1
        elif char == ")":
            depth -= 1
            if depth == 0:
                yield text[start : place + 1]
                start = place + 1
    if start < len(text):
        yield text[start:]
