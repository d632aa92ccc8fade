"""The glyphs and colours that the bundled model knows, with the words that people would type.

Every glyph is a character of the Noto Color Emoji font; names are shortened from the Unicode short
names. The list avoids glyphs that are hard to distinguish at fifty pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Literal


@dataclass(frozen=True)
class Glyph:
    """One glyph: the font's character and the words for it.

    `article` None means "a" or "an" by the first letter, "" means none (plural and mass nouns).
    `colour` is an adjective that describes the glyph in some captions.
    """

    char: str
    name: str
    colour: str | None = None
    synonyms: tuple[str, ...] = ()
    article: str | None = None


@dataclass(frozen=True)
class Background:
    """A flat colour, 0..255, with its usual name and synonyms."""

    name: str
    rgb: tuple[int, int, int]
    synonyms: tuple[str, ...] = ()


BACKGROUNDS: tuple[Background, ...] = (
    Background("red", (216, 40, 48)),
    Background("orange", (255, 144, 24)),
    Background("yellow", (255, 228, 72)),
    Background("green", (64, 168, 80)),
    Background("blue", (40, 96, 216)),
    Background("purple", (128, 56, 176)),
    Background("pink", (255, 168, 204)),
    Background("white", (252, 252, 252)),
    Background("black", (16, 16, 16)),
    Background("gray", (136, 136, 136), ("grey",)),
)

GLYPHS: tuple[Glyph, ...] = (
    # food
    Glyph("🍎", "apple", "red"),
    Glyph("🍌", "banana", "yellow"),
    Glyph("🍇", "grapes", "purple", article=""),
    Glyph("🍓", "strawberry", "red"),
    Glyph("🍉", "watermelon"),
    Glyph("🍍", "pineapple"),
    Glyph("🍋", "lemon", "yellow"),
    Glyph("🍒", "cherries", "red", article=""),
    Glyph("🍐", "pear", "green"),
    Glyph("🥑", "avocado", "green"),
    Glyph("🍆", "eggplant", "purple"),
    Glyph("🥕", "carrot", "orange"),
    Glyph("🌽", "corn", article=""),
    Glyph("🥦", "broccoli", "green", article=""),
    Glyph("🍄", "mushroom"),
    Glyph("🍞", "bread", article=""),
    Glyph("🧀", "cheese", article=""),
    Glyph("🍔", "hamburger", synonyms=("burger",)),
    Glyph("🍟", "french fries", synonyms=("fries",), article=""),
    Glyph("🍕", "pizza"),
    Glyph("🌭", "hot dog"),
    Glyph("🍩", "donut", synonyms=("doughnut",)),
    Glyph("🍪", "cookie"),
    Glyph("🎂", "birthday cake", synonyms=("cake",)),
    Glyph("🍦", "ice cream", synonyms=("ice cream cone",)),
    Glyph("☕", "coffee", synonyms=("cup of coffee",)),
    Glyph("🍺", "beer", synonyms=("mug of beer",)),
    Glyph("🍿", "popcorn", article=""),
    # animals
    Glyph("🐱", "cat"),
    Glyph("🐶", "dog"),
    Glyph("🐭", "mouse"),
    Glyph("🐰", "rabbit", synonyms=("bunny",)),
    Glyph("🦊", "fox"),
    Glyph("🐼", "panda"),
    Glyph("🦁", "lion"),
    Glyph("🐮", "cow"),
    Glyph("🐷", "pig", "pink"),
    Glyph("🐸", "frog", "green"),
    Glyph("🐵", "monkey"),
    Glyph("🐔", "chicken"),
    Glyph("🐧", "penguin"),
    Glyph("🦉", "owl"),
    Glyph("🦄", "unicorn", article="a"),
    Glyph("🐝", "bee"),
    Glyph("🦋", "butterfly", "orange"),
    Glyph("🐌", "snail"),
    Glyph("🐞", "ladybug", "red"),
    Glyph("🐢", "turtle", "green"),
    Glyph("🐍", "snake", "green"),
    Glyph("🐙", "octopus"),
    Glyph("🦀", "crab"),
    Glyph("🐬", "dolphin", "blue"),
    Glyph("🐳", "whale", "blue"),
    Glyph("🐘", "elephant", "gray"),
    Glyph("🦒", "giraffe"),
    Glyph("🐑", "sheep"),
    Glyph("🦖", "dinosaur", "green"),
    Glyph("🦩", "flamingo", "pink"),
    # faces
    Glyph("😀", "smiling face", synonyms=("smiley",)),
    Glyph("😎", "face with sunglasses", synonyms=("sunglasses face",)),
    Glyph("😭", "crying face"),
    Glyph("😡", "angry face"),
    Glyph("👽", "alien"),
    Glyph("👻", "ghost", "white"),
    Glyph("💀", "skull", "white"),
    Glyph("🤖", "robot"),
    Glyph("🎃", "pumpkin", "orange"),
    Glyph("🤡", "clown"),
    # nature
    Glyph("🌞", "sun", "yellow"),
    Glyph("🌙", "moon", "yellow"),
    Glyph("⭐", "star", "yellow"),
    Glyph("🌈", "rainbow"),
    Glyph("⛄", "snowman", "white"),
    Glyph("🔥", "fire", synonyms=("flame",), article=""),
    Glyph("🌵", "cactus", "green"),
    Glyph("🌲", "tree", "green"),
    Glyph("🌻", "sunflower"),
    Glyph("🌹", "rose", "red"),
    Glyph("🌍", "globe", synonyms=("earth",)),
    Glyph("🌋", "volcano"),
    # things
    Glyph("🚗", "car", "red"),
    Glyph("🚌", "bus"),
    Glyph("🚀", "rocket"),
    Glyph("⛵", "sailboat", synonyms=("boat",)),
    Glyph("🚂", "train"),
    Glyph("🚁", "helicopter"),
    Glyph("🏠", "house"),
    Glyph("🏰", "castle"),
    Glyph("⛺", "tent"),
    Glyph("☔", "umbrella"),
    Glyph("🎈", "balloon", "red"),
    Glyph("🎁", "gift", synonyms=("present",)),
    Glyph("⚽", "soccer ball"),
    Glyph("🏀", "basketball", "orange"),
    Glyph("🎸", "guitar"),
    Glyph("⏰", "alarm clock", synonyms=("clock",)),
    Glyph("📷", "camera"),
    Glyph("💡", "light bulb"),
    Glyph("🔑", "key"),
    Glyph("📚", "books", article=""),
    Glyph("👑", "crown"),
    Glyph("💎", "diamond", "blue"),
    Glyph("❤", "heart", "red"),
    Glyph("👟", "shoe", synonyms=("sneaker",)),
    Glyph("🎩", "top hat", "black", synonyms=("hat",)),
    Glyph("👕", "shirt", "blue", synonyms=("t-shirt",)),
    Glyph("🏆", "trophy"),
    Glyph("🧸", "teddy bear"),
)

Split = Literal["train", "test"]


def _rank(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@cache
def backgrounds_of(glyph: Glyph, split: Split) -> tuple[Background, ...]:
    """The backgrounds of a glyph: eight in the training split, the other two in the test split.

    A hash of the two names decides, so that editing the list moves no other combination.
    """
    ranked = sorted(BACKGROUNDS, key=lambda b: _rank(f"{glyph.name}/{b.name}"))
    return tuple(ranked[:2] if split == "test" else ranked[2:])


@cache
def pair_split(one: Glyph, other: Glyph) -> Split:
    """The split of an unordered pair of glyphs: a tenth of the pairs is held out."""
    first, second = sorted((one.name, other.name))
    return "test" if _rank(f"{first}+{second}") % 10 == 0 else "train"
