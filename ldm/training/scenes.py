"""Scenes of emoji and captions that describe them: the training data of the bundled model.

A scene is one or two emoji on a flat background and a caption. It depends only on (seed, index,
split); `ldm.training.data` renders it. No torch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ldm.errors import UsageError
from ldm.training.glyphs import (
    BACKGROUNDS,
    GLYPHS,
    Background,
    Glyph,
    Split,
    backgrounds_of,
    pair_split,
)

CANVAS = 128
_MARGIN = 2
_GAP = 4
_APART = 12  # pixels at most between the centres of two glyphs across their line
_SIZES_ONE = range(72, 105, 4)  # steps of four pixels keep the cache of scaled glyphs small
_SIZES_TWO = range(48, 61, 4)

Axis = Literal["horizontal", "vertical"]


@dataclass(frozen=True)
class Placed:
    """A glyph fitted into a square of `size` pixels with its top left corner at (x, y)."""

    glyph: Glyph
    x: int
    y: int
    size: int

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.size / 2, self.y + self.size / 2


@dataclass(frozen=True)
class Scene:
    """The glyphs from back to front, in pixels of a 128x128 canvas, and their caption."""

    glyphs: tuple[Placed, ...]
    background: Background
    caption: str


# {x} and {y} are nouns with their article, {n} and {m} without, {c} is the background's colour
# with its article, {b} without.
_ONE = (
    ("{x} on {c} background", 30),
    ("{x} on {b}", 10),
    ("{n} on {b}", 3),
    ("{n} on {c} background", 5),
    ("{n}, {b} background", 12),
    ("{x}, {b} background", 5),
    ("a picture of {x} on {c} background", 10),
    ("a picture of {x} on {b}", 3),
    ("a drawing of {x} on {c} background", 4),
    ("{c} background with {x}", 5),
    ("{x} in front of {c} background", 3),
    ("{x}", 3),
    ("{n}", 2),
    ("a picture of {x}", 1),
)
_TWO_ENDS = (
    (" on {c} background", 10),
    (", {b} background", 5),
    (" on {b}", 5),
    ("", 1),
)
# Side by side, in the order of the words, so that the layout is never ambiguous.
_TWO = (
    ("{x} and {y}", 7),
    ("{n} and {m}", 3),
    ("{x} next to {y}", 2),
    ("{n} next to {m}", 1),
    ("a picture of {x} and {y}", 1),
)
_TWO_RELATED = (
    ("{x} {r} {y}", 12),
    ("{n} {r} {m}", 3),
    ("a picture of {x} {r} {y}", 1),
)
_RELATIONS: dict[Axis, tuple[str, ...]] = {
    "horizontal": ("left of", "to the left of"),
    "vertical": ("above", "over"),
}
_INVERSE: dict[Axis, tuple[str, ...]] = {
    "horizontal": ("right of", "to the right of"),
    "vertical": ("below", "under"),
}
_SIZE_WORDS = ("small", "big")
_COLUMNS = ("left", "", "right")
_ROWS = ("top", "", "bottom")


def with_article(glyph: Glyph, noun: str) -> str:
    """The noun phrase with its article, by its first letter unless the glyph specifies one."""
    if glyph.article == "":
        return noun
    if glyph.article is not None and noun.split()[0] in glyph.name.split():
        return f"{glyph.article} {noun}"
    return _a(noun)


def _a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _pick(rng: random.Random, table: tuple[tuple[str, int], ...]) -> str:
    texts, weights = zip(*table, strict=True)
    return str(rng.choices(texts, weights)[0])


def _noun(rng: random.Random, placed: Placed, size_words: bool) -> str:
    glyph = placed.glyph
    noun = glyph.name
    if glyph.synonyms and rng.random() < 0.25:
        noun = rng.choice(glyph.synonyms)
    if glyph.colour is not None and rng.random() < 0.25:
        noun = f"{glyph.colour} {noun}"
    if size_words and rng.random() < 0.2:
        if placed.size <= 80:
            noun = f"small {noun}"
        elif placed.size >= 96:
            noun = f"big {noun}"
    return noun


def place_words(placed: Placed) -> str:
    """Describe the position of a lone glyph ("in the top left"), or "" if it is ambiguous."""
    x, y = placed.centre

    def third(centre: float) -> int | None:
        offset = centre - CANVAS / 2
        return 0 if offset <= -12 else 2 if offset >= 12 else 1 if abs(offset) <= 5 else None

    column, row = third(x), third(y)
    if column is None or row is None:
        return ""
    words = f"{_ROWS[row]} {_COLUMNS[column]}".strip()
    if not words:
        return "in the middle"
    return f"in the {words}" if row != 1 and column != 1 else f"at the {words}"


def _background_word(rng: random.Random, background: Background) -> str:
    if background.synonyms and rng.random() < 0.3:
        return rng.choice(background.synonyms)
    return background.name


def _scene_one(rng: random.Random, split: Split, among: Sequence[Glyph], spread: float) -> Scene:
    glyph = rng.choice(among)
    background = rng.choice(backgrounds_of(glyph, split))
    size = _size(rng, _SIZES_ONE, spread)
    placed = Placed(glyph, _central(rng, size, spread), _central(rng, size, spread), size)
    noun = _noun(rng, placed, size_words=True)
    named = with_article(glyph, noun)
    if rng.random() < 0.12 and (words := place_words(placed)):
        noun, named = f"{noun} {words}", f"{named} {words}"
    word = _background_word(rng, background)
    caption = _pick(rng, _ONE).format(x=named, n=noun, b=word, c=_a(word))
    return Scene((placed,), background, caption)


def _near(middle: float, drawn: float, spread: float) -> int:
    """Move a drawn number towards the middle: `spread` 0 gives the middle, 1 the number itself."""
    return round(middle + spread * (drawn - middle))


def _size(rng: random.Random, sizes: range, spread: float) -> int:
    """Draw one of several sizes."""
    last = len(sizes) - 1
    return sizes[_near(last / 2, rng.randint(0, last), spread)]


def _central(rng: random.Random, size: int, spread: float) -> int:
    """Draw the start of a lone glyph along one side: anywhere, but most often in the middle."""
    last = CANVAS - _MARGIN - size
    drawn = (rng.randint(_MARGIN, last) + rng.randint(_MARGIN, last)) / 2
    return _near((_MARGIN + last) / 2, drawn, spread)


def _pair(rng: random.Random, split: Split, among: Sequence[Glyph]) -> tuple[Glyph, Glyph]:
    while True:
        one, other = rng.sample(among, 2)
        if pair_split(one, other) == split:
            return one, other


def _along(rng: random.Random, first: int, second: int, spread: float) -> tuple[int, int]:
    """Draw the starts of two spans on the canvas, the first before the second, with a gap."""
    spare = CANVAS - 2 * _MARGIN - _GAP - first - second
    before, after = sorted((rng.randint(0, spare), rng.randint(0, spare)))
    before, after = (
        _near(share * spare, x, spread) for share, x in ((1 / 3, before), (2 / 3, after))
    )
    return _MARGIN + before, _MARGIN + after + first + _GAP


def _across(rng: random.Random, first: int, second: int, spread: float) -> tuple[int, int]:
    """Draw the starts of two spans with centres at most _APART pixels apart."""
    half = (max(first, second) + _APART) / 2
    centre = rng.uniform(_MARGIN + half, CANVAS - _MARGIN - half)
    shift = spread * rng.uniform(-_APART / 2, _APART / 2)
    centre = CANVAS / 2 + spread * (centre - CANVAS / 2)
    return round(centre + shift - first / 2), round(centre - shift - second / 2)


def _corners(
    rng: random.Random, axis: Axis, sizes: tuple[int, int], spread: float
) -> list[tuple[int, int]]:
    """Draw the corners of two squares, the first left of or above the second."""
    along, across = _along(rng, *sizes, spread), _across(rng, *sizes, spread)
    sides = (along, across) if axis == "horizontal" else (across, along)
    return list(zip(*sides, strict=True))


def _scene_two(rng: random.Random, split: Split, among: Sequence[Glyph], spread: float) -> Scene:
    glyphs = _pair(rng, split, among)
    allowed = [
        b
        for b in BACKGROUNDS
        if split == "test" or all(b in backgrounds_of(glyph, "train") for glyph in glyphs)
    ]
    background = rng.choice(allowed)
    sizes = (_size(rng, _SIZES_TWO, spread), _size(rng, _SIZES_TWO, spread))
    related = rng.random() < 0.6
    axis: Axis = rng.choices(get_args(Axis), (3, 7))[0] if related else "horizontal"
    corners = _corners(rng, axis, sizes, spread)
    placed = tuple(
        Placed(glyph, x, y, size)
        for glyph, (x, y), size in zip(glyphs, corners, sizes, strict=True)
    )
    swap = related and rng.random() < 0.5  # mention the second one first
    spoken = placed[::-1] if swap else placed
    nouns = [_noun(rng, p, size_words=False) for p in spoken]
    relations = (_INVERSE if swap else _RELATIONS)[axis]
    text = _pick(rng, _TWO_RELATED if related else _TWO) + _pick(rng, _TWO_ENDS)
    word = _background_word(rng, background)
    caption = text.format(
        x=with_article(spoken[0].glyph, nouns[0]),
        y=with_article(spoken[1].glyph, nouns[1]),
        n=nouns[0],
        m=nouns[1],
        r=rng.choice(relations),
        b=word,
        c=_a(word),
    )
    return Scene(placed, background, caption)


def scene(
    seed: int,
    index: int,
    split: Split = "train",
    two_glyphs: float = 0.35,
    among: Sequence[Glyph] = GLYPHS,
    spread: float = 1.0,
) -> Scene:
    """The scene of a number; `two_glyphs` is the share of scenes with two of `among`.

    `spread` is the variation of position and size, from 0 (none) to 1 (full). A test scene shows a
    glyph on a background, or a pair of glyphs, that training never shows.
    """
    if split not in get_args(Split):
        raise UsageError(f"data: split {split!r} is not one of train, test")
    rng = random.Random(f"{seed}/{split}/{index}")
    draw = _scene_two if rng.random() < two_glyphs else _scene_one
    return draw(rng, split, among, spread)


# Numbers of values of a scene's facts: glyphs back to front (the second or none), background, axis.
FACT_SIZES = (len(GLYPHS), len(GLYPHS) + 1, len(BACKGROUNDS), len(get_args(Axis)) + 1)


def facts(what: Scene) -> tuple[int, int, int, int]:
    """The scene as numbers, one below each of FACT_SIZES."""
    first, *others = what.glyphs
    second = GLYPHS.index(others[0].glyph) if others else len(GLYPHS)
    axis = 0
    for other in others:
        right, down = (b - a for a, b in zip(first.centre, other.centre, strict=True))
        axis = 1 if abs(right) > abs(down) else 2
    return GLYPHS.index(first.glyph), second, BACKGROUNDS.index(what.background), axis


def glyph_layout(what: Scene, cells: int) -> NDArray[np.int64]:
    """The index in GLYPHS for each cell: [cells, cells], rows from the top; len(GLYPHS) is none."""
    middles = (np.arange(cells) + 0.5) * (CANVAS / cells)
    layout = np.full((cells, cells), len(GLYPHS), dtype=np.int64)
    for placed in what.glyphs:
        across, down = (
            (middles >= start) & (middles < start + placed.size) for start in (placed.x, placed.y)
        )
        layout[np.ix_(down, across)] = GLYPHS.index(placed.glyph)
    return layout


def all_captions_vocabulary(among: Sequence[Glyph] = GLYPHS) -> Iterator[str]:
    """A small set of captions that together contain every word of the data."""
    for background in BACKGROUNDS:
        for word in (background.name, *background.synonyms):
            yield f"{_a(word)} background"
    for glyph in among:
        for name in (glyph.name, *glyph.synonyms):
            noun = f"{glyph.colour} {name}" if glyph.colour else name
            yield f"{with_article(glyph, name)}, {with_article(glyph, noun)}"
    for text in (text for table in (_ONE, _TWO, _TWO_RELATED, _TWO_ENDS) for text, _ in table):
        yield text.format(x="a", y="an", n="", m="", b="blue", c="an blue", r="next to")
    yield from (r for table in (_RELATIONS, _INVERSE) for row in table.values() for r in row)
    for row in _ROWS:
        for column in _COLUMNS:
            yield " ".join(f"in at the {row} {column}".split())
    yield f"{' '.join(_SIZE_WORDS)} in the middle"
