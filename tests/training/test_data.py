"""The data draws what its captions say, the same every time, and keeps its test scenes apart."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ldm.errors import UsageError
from ldm.training.data import GlyphSheet, Scenes, named_glyphs, render
from ldm.training.glyphs import BACKGROUNDS, GLYPHS, Split, backgrounds_of, pair_split
from ldm.training.scenes import (
    CANVAS,
    FACT_SIZES,
    Placed,
    Scene,
    all_captions_vocabulary,
    facts,
    glyph_layout,
    place_words,
    scene,
    with_article,
)
from tests.emoji_font import EMOJI_FONT

SPLITS: tuple[Split, ...] = ("train", "test")
MANY = 3000
CAPTIONS = [
    "a dinosaur above a dog on an orange background",
    "a volcano below an alien on a white background",
    "a picture of a green snake on a gray background",
    "a camera on a green background",
]


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z-]+", text))


def many(split: Split) -> list[Scene]:
    return [scene(7, index, split) for index in range(MANY)]


def test_there_are_enough_glyphs_with_names_of_their_own() -> None:
    assert len(GLYPHS) >= 100
    assert len(BACKGROUNDS) == 10
    names = [name for g in GLYPHS for name in (g.name, *g.synonyms)]
    assert len(set(names)) == len(names)
    assert len({g.char for g in GLYPHS}) == len(GLYPHS)


def test_backgrounds_are_well_apart() -> None:
    for one, other in itertools.combinations(BACKGROUNDS, 2):
        assert np.linalg.norm(np.subtract(one.rgb, other.rgb)) > 75, (one.name, other.name)


def test_every_glyph_has_two_backgrounds_of_its_own_for_the_test() -> None:
    for glyph in GLYPHS:
        train, test = backgrounds_of(glyph, "train"), backgrounds_of(glyph, "test")
        assert len(test) == 2
        assert set(train) | set(test) == set(BACKGROUNDS)
        assert not set(train) & set(test)


def test_held_out_combinations_and_pairs_are_never_in_training() -> None:
    for what in many("train"):
        for placed in what.glyphs:
            assert what.background in backgrounds_of(placed.glyph, "train")
        if len(what.glyphs) == 2:
            assert pair_split(*(p.glyph for p in what.glyphs)) == "train"


def test_test_scenes_show_what_is_held_out() -> None:
    for what in many("test"):
        if len(what.glyphs) == 1:
            assert what.background in backgrounds_of(what.glyphs[0].glyph, "test")
        else:
            assert pair_split(*(p.glyph for p in what.glyphs)) == "test"


def test_a_tenth_of_the_pairs_is_held_out_whichever_comes_first() -> None:
    pairs = list(itertools.combinations(GLYPHS, 2))
    held_out = [pair for pair in pairs if pair_split(*pair) == "test"]
    assert 0.08 < len(held_out) / len(pairs) < 0.12
    assert all(pair_split(b, a) == pair_split(a, b) for a, b in pairs[:500])


def test_scenes_depend_on_seed_index_and_split_alone() -> None:
    assert scene(1, 2, "train") == scene(1, 2, "train")
    others = (scene(2, 2, "train"), scene(1, 3, "train"), scene(1, 2, "test"))
    assert all(scene(1, 2, "train") != other for other in others)


def test_scenes_stay_what_they_were() -> None:
    """The bundled model was trained on these: a change here makes its card untrue."""
    assert [scene(0, index).caption for index in range(4)] == CAPTIONS


def test_without_spread_glyphs_keep_their_places() -> None:
    still = [scene(0, index, two_glyphs=0.0, spread=0.0).glyphs[0] for index in range(50)]
    assert len({placed.size for placed in still}) == 1
    assert max(abs(c - CANVAS / 2) for placed in still for c in placed.centre) <= 1
    free = [scene(0, index, two_glyphs=0.0).glyphs[0] for index in range(50)]
    assert len({placed.size for placed in free}) > 5


def test_facts_are_those_of_the_scene() -> None:
    for what in many("train"):
        first, second, background, axis = facts(what)
        assert GLYPHS[first] == what.glyphs[0].glyph
        assert BACKGROUNDS[background] == what.background
        assert (second == len(GLYPHS)) == (axis == 0) == (len(what.glyphs) == 1)
        assert all(fact < size for fact, size in zip(facts(what), FACT_SIZES, strict=True))
        if " left of " in what.caption or " right of " in what.caption:
            assert axis == 1
        if " above " in what.caption or " below " in what.caption:
            assert axis == 2


def test_what_is_not_said_follows_the_words() -> None:
    """Side by side in the order of the words, so that no caption leaves the places open."""
    said = (" of ", " above ", " over ", " below ", " under ")
    plain = 0
    for what in many("train"):
        if len(what.glyphs) == 2 and not any(word in what.caption for word in said):
            first, second = what.glyphs
            names = [(p.glyph.name, *p.glyph.synonyms) for p in what.glyphs]
            at = [min(what.caption.find(n) % 1000 for n in each) for each in names]
            assert first.centre[0] + 20 < second.centre[0]
            plain += at[0] < at[1]
    assert plain > 300


def test_the_layout_of_a_scene_shows_every_glyph_where_it_is() -> None:
    for what in many("train")[:200]:
        layout = glyph_layout(what, 8)
        assert set(layout.flat) == {*(GLYPHS.index(p.glyph) for p in what.glyphs), len(GLYPHS)}
        for placed in what.glyphs:
            column, row = (int(c // 16) for c in placed.centre)
            assert layout[row, column] == GLYPHS.index(placed.glyph)


def test_glyphs_lie_on_the_canvas_and_apart() -> None:
    for what in many("train"):
        for p in what.glyphs:
            assert min(p.x, p.y) >= 2
            assert max(p.x, p.y) + p.size <= CANVAS - 2
        if len(what.glyphs) == 2:
            a, b = what.glyphs
            apart_x = b.x - (a.x + a.size) >= 4 or a.x - (b.x + b.size) >= 4
            assert apart_x or b.y - (a.y + a.size) >= 4


def test_two_glyphs_come_in_the_share_asked_for() -> None:
    share = sum(len(what.glyphs) == 2 for what in many("train")) / MANY
    assert share == pytest.approx(0.35, abs=0.04)
    assert all(len(scene(0, i, two_glyphs=0.0).glyphs) == 1 for i in range(50))


def test_captions_name_every_glyph_and_mostly_the_background() -> None:
    silent = 0
    for split in SPLITS:
        for what in many(split):
            for placed in what.glyphs:
                glyph = placed.glyph
                assert any(name in what.caption for name in (glyph.name, *glyph.synonyms))
            colours = (what.background.name, *what.background.synonyms)
            silent += not words(what.caption) & set(colours)
            assert re.fullmatch(r"[a-z ,-]+", what.caption)
            assert "  " not in what.caption
            assert not re.search(r"\ba [aeio]|\ban [^aeiou]", what.caption)
    assert silent / (2 * MANY) < 0.1


RELATION = re.compile(
    r"(?P<first>.+?) (?:to the )?(?P<relation>left of|right of|above|over|below|under)"
    r" (?P<second>.+)"
)


def test_relations_in_captions_are_true() -> None:
    seen = set()
    for what in many("train"):
        match = RELATION.search(what.caption)
        if match is None:
            continue
        first = next(p for p in what.glyphs if _named(p, match["first"]))
        second = next(p for p in what.glyphs if p is not first)
        dx, dy = np.subtract(first.centre, second.centre)
        relation = match["relation"]
        sideways = relation in ("left of", "right of")
        assert abs(dx) > abs(dy) if sideways else abs(dy) > abs(dx)
        assert (dx if sideways else dy) < 0 or relation in ("right of", "below", "under")
        assert (dx if sideways else dy) > 0 or relation in ("left of", "above", "over")
        seen.add(relation)
    assert seen == {"left of", "right of", "above", "over", "below", "under"}


def _named(placed: Placed, text: str) -> bool:
    names = (placed.glyph.name, *placed.glyph.synonyms)
    return any(re.search(rf"\b{name}$", text) for name in names)


def test_size_and_place_words_are_true() -> None:
    seen = set()
    for what in many("train"):
        said = words(what.caption)
        for placed in what.glyphs:
            x, y = placed.centre
            assert "small" not in said or placed.size <= 80
            assert "big" not in said or placed.size >= 96
            for word, true in (
                ("in the top", y < 64),
                ("at the bottom", y > 64),
                ("at the left", x < 64),
                ("top right", x > 64),
                ("in the middle", abs(x - 64) <= 5 and abs(y - 64) <= 5),
            ):
                if word in what.caption:
                    seen.add(word)
                    assert true
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (2, 2, "in the top left"),
        (36, 36, "in the middle"),
        (36, 70, "at the bottom"),
        (70, 36, "at the right"),
        (43, 36, ""),
    ],
)
def test_place_words(x: int, y: int, expected: str) -> None:
    assert place_words(Placed(GLYPHS[0], x, y, 56)) == expected


def test_articles() -> None:
    by_name = {glyph.name: glyph for glyph in GLYPHS}
    assert with_article(by_name["apple"], "apple") == "an apple"
    assert with_article(by_name["apple"], "red apple") == "a red apple"
    assert with_article(by_name["unicorn"], "unicorn") == "a unicorn"
    assert with_article(by_name["carrot"], "orange carrot") == "an orange carrot"
    assert with_article(by_name["grapes"], "purple grapes") == "purple grapes"


def test_the_vocabulary_holds_every_word_of_the_captions() -> None:
    vocabulary = set().union(*(words(text) for text in all_captions_vocabulary()))
    for split in SPLITS:
        for what in many(split):
            assert words(what.caption) <= vocabulary
    assert len(vocabulary) < 250


@pytest.mark.parametrize(
    "make",
    [
        lambda: Scenes(font="/nowhere/at-all.ttf"),
        lambda: Scenes(font=__file__),
        lambda: Scenes(size=1),
        lambda: Scenes(two_glyphs=2.0),
        lambda: scene(0, 0, "trian"),  # type: ignore[arg-type]
    ],
)
def test_bad_parameters_are_usage_errors_of_one_line(make: object) -> None:
    with pytest.raises(UsageError) as raised:
        make()  # type: ignore[operator]
    assert "\n" not in str(raised.value)


def test_an_absent_font_names_the_package() -> None:
    with pytest.raises(UsageError, match="fonts-noto-color-emoji"):
        GlyphSheet("/nowhere/at-all.ttf")


def test_data_does_not_import_torch() -> None:
    code = "import sys, ldm.training.data; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_every_glyph_is_in_the_font_and_keeps_its_shape() -> None:
    sheet = GlyphSheet(EMOJI_FONT)
    for glyph in GLYPHS:
        rgba = sheet.rgba(glyph, 60)
        assert max(rgba.shape[:2]) == 60
        assert rgba[..., 3].max() == 255
        assert rgba[..., :3][rgba[..., 3] > 128].std() > 5  # colours, not a box or one flat stain


@pytest.mark.parametrize("size", [64, 128, 256])
def test_images_have_the_background_outside_the_glyphs(size: int) -> None:
    scenes = Scenes(EMOJI_FONT, size=size, seed=3)
    for index in range(20):
        image, caption = scenes[index]
        what = scenes.scene(index)
        assert caption == what.caption
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        outside = np.ones((size, size), dtype=bool)
        for p in what.glyphs:
            left, top, side = (round(v * size / CANVAS) for v in (p.x, p.y, p.size))
            outside[top : top + side, left : left + side] = False
            inside = image[top : top + side, left : left + side]
            assert (inside != what.background.rgb).any()
        assert (image[outside] == what.background.rgb).all()


def test_compositing_is_exact() -> None:
    sheet = GlyphSheet(EMOJI_FONT)
    placed = Placed(GLYPHS[0], 10, 20, 64)
    what = Scene((placed,), BACKGROUNDS[4], "")
    rgba = sheet.rgba(placed.glyph, 64).astype(float)
    height, width = rgba.shape[:2]
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + np.array(BACKGROUNDS[4].rgb) * (1 - alpha)
    top, left = 20 + (64 - height) // 2, 10 + (64 - width) // 2
    got = render(what, sheet)[top : top + height, left : left + width]
    assert np.abs(got - expected).max() <= 0.51


def test_batches_are_the_numbered_scenes() -> None:
    scenes = Scenes(EMOJI_FONT, seed=5, split="test")
    images, captions = scenes.batch(10, 4)
    assert images.shape == (4, 128, 128, 3)
    for row in range(4):
        image, caption = scenes[10 + row]
        assert caption == captions[row]
        assert (images[row] == image).all()


def test_scenes_can_be_of_a_few_glyphs() -> None:
    names = ["apple", "cat", "robot"]
    few = named_glyphs(names)
    drawn = {g.glyph.name for i in range(60) for g in scene(0, i, among=few).glyphs}
    assert drawn == set(names)
    words = " ".join(all_captions_vocabulary(few)).split()
    assert "robot" in words
    assert "pizza" not in words


@pytest.mark.parametrize(
    ("names", "message"), [(["aple", "cat"], "aple.*apple"), (["cat", "cat"], "two or more")]
)
def test_glyphs_that_there_are_not_are_named(names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        named_glyphs(names)
