"""Prompts of held-out scenes, by which the bundled models are judged."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ldm.training.data import Pixels
from ldm.training.glyphs import BACKGROUNDS, GLYPHS, Background, Glyph, backgrounds_of, pair_split
from ldm.training.scenes import with_article

_ONE = ("{x} on {c} background", "{x} on {b}", "{n}, {b} background", "a picture of {x} on {b}")
_TWO = (
    ("{x} and {y} on {c} background", ""),
    ("{x} left of {y} on {c} background", "left of"),
    ("{x} above {y} on {c} background", "above"),
    ("{n} and {m}, {b} background", ""),
)

T = TypeVar("T")
Generate = Callable[[Sequence["Prompt"]], Pixels]


@dataclass(frozen=True)
class Prompt:
    """A sentence and what an image of it must show; `relation` is first to second glyph."""

    text: str
    glyphs: tuple[Glyph, ...]
    background: Background
    relation: str = ""


def _text(template: str, glyphs: Sequence[Glyph], background: Background) -> str:
    names = [glyph.name for glyph in glyphs]
    named = [with_article(glyph, glyph.name) for glyph in glyphs]
    colour = f"an {background.name}" if background.name[0] in "aeiou" else f"a {background.name}"
    fields = dict(zip("nm", names, strict=False)) | dict(zip("xy", named, strict=False))
    return template.format(**fields, b=background.name, c=colour)


def _cycled(items: Sequence[T], n: int) -> Iterator[T]:
    """The first n, from the start again where there are fewer."""
    return itertools.islice(itertools.cycle(items), n)


def single_prompts(n: int, seed: int, among: Sequence[Glyph] = GLYPHS) -> list[Prompt]:
    """The first n of the shuffled held-out combinations of a glyph and a background.

    Where `among` has fewer they come again; each image has a seed of its own.
    """
    held_out = [(g, b) for g in among for b in backgrounds_of(g, "test")]
    random.Random(f"{seed}/single").shuffle(held_out)
    rounds = zip(_cycled(held_out, n), itertools.cycle(_ONE), strict=False)
    return [
        Prompt(_text(template, (glyph,), background), (glyph,), background)
        for (glyph, background), template in rounds
    ]


def pair_prompts(n: int, seed: int, among: Sequence[Glyph] = GLYPHS) -> list[Prompt]:
    """The first n of the shuffled held-out pairs, on backgrounds training shows both on."""
    rng = random.Random(f"{seed}/pair")
    held_out = [p for p in itertools.combinations(among, 2) if pair_split(*p) == "test"]
    rng.shuffle(held_out)
    prompts = []
    rounds = zip(_cycled(held_out, n), itertools.cycle(_TWO), strict=False)
    for pair, (template, relation) in rounds:
        glyphs = pair if rng.random() < 0.5 else pair[::-1]
        shared = [b for b in BACKGROUNDS if all(b in backgrounds_of(g, "train") for g in glyphs)]
        background = rng.choice(shared)
        prompts.append(Prompt(_text(template, glyphs, background), glyphs, background, relation))
    return prompts
