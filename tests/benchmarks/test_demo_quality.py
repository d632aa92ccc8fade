"""The demo's metrics are right on true drawings, wrong on wrong ones, and know no prompt."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import benchmarks.demo_quality as demo
from benchmarks.retrieval import Finder, Match, background_of, emptiest_line, psnr
from ldm.training.data import GlyphSheet, Pixels, render
from ldm.training.glyphs import BACKGROUNDS, GLYPHS, backgrounds_of, pair_split
from ldm.training.scenes import Placed, Scene, scene
from tests.emoji_font import EMOJI_FONT


def spoiled(image: Pixels, blur: float, noise: float, seed: int) -> Pixels:
    soft = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(blur)), dtype=float)
    loud = soft + np.random.default_rng(seed).normal(0, noise, soft.shape)
    return np.clip(loud, 0, 255).astype(np.uint8)


def test_every_glyph_is_found_by_itself(sheet: GlyphSheet, finder: Finder) -> None:
    rng = random.Random(0)
    for index, glyph in enumerate(GLYPHS):
        background = backgrounds_of(glyph, "test")[index % 2]
        size = rng.randrange(56, 101, 4)
        placed = Placed(glyph, rng.randint(2, 126 - size), rng.randint(2, 126 - size), size)
        blur, noise = ((0.0, 0.0), (1.5, 12.0))[index // 2 % 2]
        image = spoiled(render(Scene((placed,), background, ""), sheet), blur, noise, index)
        match = finder.one(image)
        assert match.glyph == glyph, (glyph.name, background.name)
        assert background_of(image) == background
        assert np.allclose(match.centre, placed.centre, atol=5)


def test_pairs_are_found(sheet: GlyphSheet, finder: Finder) -> None:
    scenes = [scene(12, index, "test", two_glyphs=1.0) for index in range(12)]
    right = 0
    for index, what in enumerate(scenes):
        matches = finder.two(spoiled(render(what, sheet), 1.0, 8.0, index))
        right += {m.glyph for m in matches} == {p.glyph for p in what.glyphs}
    assert right >= 11


def test_a_blank_image_and_a_lone_glyph_are_no_pair(sheet: GlyphSheet, finder: Finder) -> None:
    blank = np.full((128, 128, 3), 90, dtype=np.uint8)
    assert finder.one(blank).score == pytest.approx(0, abs=1e-3)
    lone = render(Scene((Placed(GLYPHS[0], 30, 30, 70),), BACKGROUNDS[4], ""), sheet)
    matches = finder.two(lone)
    assert min(m.score for m in matches) < 0.8


def test_the_score_falls_with_what_is_wrong(sheet: GlyphSheet, finder: Finder) -> None:
    good = render(Scene((Placed(GLYPHS[0], 30, 30, 70),), BACKGROUNDS[4], ""), sheet)
    smeared = good.copy()
    smeared[100:124, 4:60] = (250, 250, 0)
    assert finder.one(good).score > 0.9
    assert finder.one(good).score > finder.one(smeared).score + 0.05


@pytest.mark.parametrize(
    ("axis", "boxes", "low", "high"),
    [
        (1, [(10, 40), (80, 120)], 40, 80),
        (1, [(0, 50), (55, 100)], 50, 55),
        (0, [(60, 90)], 60, 90),  # a single thing: cut somewhere through it
    ],
)
def test_emptiest_line(axis: int, boxes: Sequence[tuple[int, int]], low: int, high: int) -> None:
    difference = np.zeros((128, 128, 3), dtype=np.float32)
    for start, stop in boxes:
        difference[start:stop, start:stop] = 0.5
    assert low <= emptiest_line(difference, axis) <= high


def test_psnr() -> None:
    zeros = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    others = zeros.copy()
    others[1] = 255
    assert psnr(zeros, others)[1] == pytest.approx(0)
    assert psnr(zeros, others)[0] > 100
    assert psnr(zeros, zeros + np.uint8(1))[0] == pytest.approx(48.13, abs=0.01)


def test_prompts_are_held_out_and_fixed() -> None:
    singles, pairs = demo.single_prompts(200, 1), demo.pair_prompts(100, 1)
    assert len({(p.glyphs, p.background) for p in singles}) == 200
    assert len({frozenset(p.glyphs) for p in pairs}) == 100
    assert all(p.background in backgrounds_of(p.glyphs[0], "test") for p in singles)
    assert all(pair_split(*p.glyphs) == "test" for p in pairs)
    assert singles == demo.single_prompts(200, 1)
    assert singles != demo.single_prompts(200, 2)
    seen = {scene(0, index).caption for index in range(20000)}
    assert not seen & {p.text for p in itertools.chain(singles, pairs)}


def report_of(prompts: Sequence[demo.Prompt], images: Pixels, finder: Finder) -> demo.Report:
    report = demo.Report()
    judge = demo.judge_pairs if len(prompts[0].glyphs) == 2 else demo.judge_single
    judge(prompts, images, finder, report)
    return report


def test_wrong_images_are_judged_wrong(sheet: GlyphSheet, finder: Finder) -> None:
    singles, pairs = demo.single_prompts(12, 3), demo.pair_prompts(8, 3)
    draw = demo.truth(sheet, 0)
    images = draw(singles)
    right = report_of(singles, images, finder)
    wrong = report_of(singles, np.roll(images, 1, axis=0), finder)
    assert right.figures[demo.SINGLE] == 1
    assert right.figures[demo.BACKGROUND] == 1
    assert wrong.figures[demo.SINGLE] < 0.2
    assert set(wrong.missed()) == {demo.SINGLE, demo.BACKGROUND}
    assert {f["prompt"] for f in wrong.failures} == {p.text for p in singles}
    images = draw(pairs)
    assert report_of(pairs, images, finder).figures[demo.PAIR] >= 7 / 8
    assert report_of(pairs, np.roll(images, 1, axis=0), finder).figures[demo.PAIR] == 0


def test_images_beside_those_of_another_precision(sheet: GlyphSheet, finder: Finder) -> None:
    prompts = demo.single_prompts(3, 5)
    rng = random.Random(0)
    images = np.stack([demo.true_image(prompt, sheet, rng) for prompt in prompts])
    others = np.roll(images, 1, axis=0)
    report = demo.Report()
    demo.judge_beside(prompts, images, others, finder, report)
    right, mean, least = report.extra.values()
    assert right == 0
    assert least < mean < 30
    demo.judge_beside(prompts, others, images, finder, report)
    assert list(report.extra.values()) == [1, mean, least]


def test_relations() -> None:
    def at(x: int, y: int) -> Match:
        return Match(GLYPHS[0], 1.0, x, y, 40, 40)

    assert demo.relation_holds("left of", at(0, 40), at(80, 30))
    assert not demo.relation_holds("left of", at(80, 40), at(0, 30))
    assert demo.relation_holds("above", at(40, 0), at(40, 80))
    assert not demo.relation_holds("above", at(0, 40), at(80, 60))


def test_retrieval_is_fast(sheet: GlyphSheet, finder: Finder) -> None:
    images = demo.truth(sheet, 0)(demo.single_prompts(10, 3))
    best = float("inf")
    for image in images:
        started = time.process_time()
        finder.one(image)
        best = min(best, time.process_time() - started)
    assert best < 0.2


def test_the_script_judges_true_drawings_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, grid = tmp_path / "demo.json", tmp_path / "grid.png"
    argv = [
        "--truth",
        "--font",
        str(EMOJI_FONT),
        "--n",
        "24",
        "--json",
        str(record),
        "--grid",
        str(grid),
    ]
    assert demo.main(argv) == 0
    out = capsys.readouterr().out
    assert out.count("reached") == 3
    figures = json.loads(record.read_text())["figures"]
    assert figures[demo.SINGLE] == 1
    with Image.open(grid) as image:
        assert image.size == (6 * 136, 6 * 176)


def test_an_absent_font_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--truth", "--font", "/nowhere.ttf"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_sheet_has_a_place_for_each_image() -> None:
    rng = random.Random(0)
    images = [np.full((128, 128, 3), rng.randrange(256), dtype=np.uint8) for _ in range(7)]
    assert demo.contact_sheet(images, ["a long caption of a cat on blue"] * 7).size == (816, 352)
