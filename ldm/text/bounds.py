"""The weights that a prompt may have."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ldm.errors import JobError
from ldm.text.comfy import parse_comfy
from ldm.text.prompt import parse
from ldm.text.schedule import split_and

LARGEST_WEIGHT = 1000.0
"""Beyond it, networks overflow in half precision."""
_WRITTEN = re.compile(r":\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)")


def check_weights(text: str, syntax: str) -> None:
    """Raise JobError for a weight in a prompt that is larger than `LARGEST_WEIGHT`."""
    for weight in _weights(text, syntax):
        if not abs(weight) <= LARGEST_WEIGHT:
            most = f"{LARGEST_WEIGHT:g}"
            raise JobError(
                f"the prompt has a weight of {weight:g}; weights may be from -{most} to {most}"
            )


def _weights(text: str, syntax: str) -> Iterator[float]:
    if syntax != "plain":  # in an edit, too, whose brackets are no weights
        yield from (float(number) for number in _WRITTEN.findall(text))
    for part in split_and(text, syntax):
        yield part.weight
        pieces = [parse_comfy(part.text)] if syntax == "comfy" else parse(part.text, syntax)
        yield from (piece.weight for group in pieces for piece in group)
