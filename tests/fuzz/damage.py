"""Sound files made hostile: strategies of Hypothesis that damage bytes, texts and JSON."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

# Numbers at which programs go wrong.
ODD_NUMBERS = (
    0, 1, -1, 2, 7, 63, 64, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32,
    2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**31), -(2**63), 10**30, 10**400,
)  # fmt: skip
_ODD_BYTES = [
    (number % 2**64).to_bytes(8, order)[-size if order == "big" else 0 :][:size]
    for number in ODD_NUMBERS
    for order in ("little", "big")
    for size in (1, 2, 4, 8)
]
ODD_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from([None, True, False, "", "0", [], {}, [[]], {"": {}}, 0.5, 1e308, -0.0]),
    st.sampled_from([float("inf"), float("-inf"), float("nan")]),
    st.text(max_size=8),
)


@st.composite
def damaged(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """One of some files, cut, flipped, overwritten, doubled or grown together with another."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        size = len(data)
        at = draw(st.integers(0, max(0, size - 1)))
        end = min(size, at + draw(st.sampled_from([1, 2, 4, 8, 16, 64, 256])))
        way = draw(st.integers(0, 7))
        if way == 0 and size:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif way == 1:
            odd = draw(st.sampled_from(_ODD_BYTES))
            data[at : at + len(odd)] = odd
        elif way == 2:
            del data[at:end]
        elif way == 3:
            del data[at:]
        elif way == 4:
            data[at:at] = data[at:end] * draw(st.sampled_from([1, 2, 50]))
        elif way == 5:
            data[at:at] = draw(st.binary(max_size=16))
        elif way == 6:
            data[at:end] = draw(st.binary(max_size=16))
        else:
            other = draw(st.sampled_from(seeds))
            cut = draw(st.integers(0, len(other)))
            data[at:] = other[cut:]
    return bytes(data)


@st.composite
def damaged_text(draw: st.DrawFn, seeds: Sequence[str], marks: Sequence[str]) -> str:
    """One of some texts with pieces of it doubled, taken out, and signs of its grammar put in."""
    text = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 8))):
        at = draw(st.integers(0, len(text)))
        end = min(len(text), at + draw(st.sampled_from([1, 2, 5, 20, 100])))
        way = draw(st.integers(0, 5))
        if way == 0:
            text = text[:at] + text[end:]
        elif way == 1:
            text = text[:at] + draw(st.sampled_from(marks)) + text[at:]
        elif way == 2:
            text = text[:at] + draw(st.sampled_from(marks)) + text[end:]
        elif way == 3:
            text = text[:end] + text[at:end] * draw(st.sampled_from([1, 3, 200])) + text[end:]
        elif way == 4:
            text = text[:at] + draw(st.text(max_size=6)) + text[at:]
        else:
            text = text[:at] + str(draw(st.sampled_from(ODD_NUMBERS))) + text[at:]
    return text


@st.composite
def damaged_json(draw: st.DrawFn, value: Any) -> Any:
    """A value of JSON with some of its parts replaced, taken out or added."""
    for _ in range(draw(st.integers(1, 3))):
        value = draw(_changed(value))
    return value


@st.composite
def _changed(draw: st.DrawFn, value: Any) -> Any:
    way = draw(st.integers(0, 9))
    if isinstance(value, dict) and value and way:
        key = draw(st.sampled_from(sorted(value)))
        if way == 1:
            return {name: part for name, part in value.items() if name != key}
        if way == 2:
            return {**value, draw(st.text(max_size=6)): draw(ODD_VALUES)}
        return {**value, key: draw(_changed(value[key]))}
    if isinstance(value, list) and value and way:
        at = draw(st.integers(0, len(value) - 1))
        if way == 1:
            return value[:at]
        if way == 2:
            return value * 40
        return [*value[:at], draw(_changed(value[at])), *value[at + 1 :]]
    return draw(ODD_VALUES)


@st.composite
def with_an_odd_value(draw: st.DrawFn, trees: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One of some trees with something else in the place of one of its values, however deep."""
    tree = copy.deepcopy(draw(st.sampled_from(trees)))
    at = tree
    while True:
        key = draw(st.sampled_from(sorted(at)))
        if not isinstance(at[key], dict) or not at[key] or not draw(st.integers(0, 9)):
            break
        at = at[key]
    at[key] = draw(ODD_VALUES | st.lists(ODD_VALUES, max_size=4))
    return tree
