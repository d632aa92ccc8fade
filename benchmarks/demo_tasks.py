"""Do the bundled models for images do what they are for? The figures of the inpainter, the depth
model and the upscaler, beside those of `demo_quality`; all scenes are held out of the training.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.retrieval import Finder, background_of, border_colour, psnr
from ldm.training.data import GlyphSheet, Pixels, layers, render
from ldm.training.glyphs import GLYPHS, Glyph, backgrounds_of
from ldm.training.scenes import CANVAS, Placed, Scene, with_article

BARS = {
    "inpainting, the glyph of the prompt is the nearest": 0.85,
    "inpainting, images the same byte for byte outside": 1.0,
    "depth, the silhouette's intersection over union": 0.75,
    "depth, the glyph of the prompt is the nearest": 0.80,
    "upscaling, dB of PSNR more than bicubic": 2.0,
}
INPAINTED, OUTSIDE, SILHOUETTE, SHAPED, GAIN = BARS
_MARGIN = 3  # pixels by which a mask is larger than what it covers
_DIFFERENT = 40  # of 255, in RGB: what counts as part of a silhouette
_SIZES = range(76, 101, 4)

Solve = Callable[[Sequence[dict[str, Any]]], Iterator[Pixels]]
"""From fields of jobs (without seeds) to their images, in order."""


@dataclass
class Figures:
    """Figures by name, and the prompts that failed with what was found in their place."""

    figures: dict[str, float] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)
    shown: list[tuple[Pixels, Pixels, str]] = field(default_factory=list)
    """Some of what was given, what came of it, and the prompt."""


def held_out(n: int, seed: int, purpose: str) -> list[Scene]:
    """Scenes of one glyph, each on a background that training never shows it on."""
    rng = random.Random(f"{seed}/{purpose}")
    pairs = [(glyph, ground) for glyph in GLYPHS for ground in backgrounds_of(glyph, "test")]
    scenes = []
    for glyph, ground in rng.sample(pairs, n):
        size = rng.choice(_SIZES)
        x, y = (rng.randint(8, CANVAS - 8 - size) for _ in range(2))
        text = f"{with_article(glyph, glyph.name)} on {ground.name}"
        scenes.append(Scene((Placed(glyph, x, y, size),), ground, text))
    return scenes


def inpainting(n: int, seed: int, sheet: GlyphSheet, finder: Finder, solve: Solve) -> Figures:
    """Another glyph is in the image; it is masked, and the prompt's is to take its place."""
    rng = random.Random(f"{seed}/others")
    scenes = held_out(n, seed, "inpainting")
    told = Figures()
    with TemporaryDirectory() as folder:
        jobs, given, masks = [], [], []
        for row, scene in enumerate(scenes):
            (placed,) = scene.glyphs
            other = replace(placed, glyph=_another(rng, placed.glyph))
            given.append(render(replace(scene, glyphs=(other,)), sheet))
            mask = np.zeros((CANVAS, CANVAS), np.uint8)
            top, left = placed.y - _MARGIN, placed.x - _MARGIN
            side = placed.size + 2 * _MARGIN
            mask[top : top + side, left : left + side] = 255
            masks.append(mask)
            image = _write(Path(folder) / f"{row}.png", given[-1])
            hole = _write(Path(folder) / f"{row}_mask.png", mask)
            jobs.append(
                {"task": "inpaint", "prompt": scene.caption, "init_img": image, "mask": hole}
            )
        images = list(solve(jobs))
    _found(INPAINTED, scenes, images, finder, told)
    same = [
        bool((image == before)[mask == 0].all())
        for image, before, mask in zip(images, given, masks, strict=True)
    ]
    told.figures[OUTSIDE] = float(np.mean(same))
    covered = (
        np.where(mask[..., None] > 0, 128, image) for image, mask in zip(given, masks, strict=True)
    )
    told.shown = _some(covered, images, scenes)
    return told


def depth(n: int, seed: int, sheet: GlyphSheet, finder: Finder, solve: Solve) -> Figures:
    """From noise alone, to the depths of a scene that the prompt tells."""
    scenes = held_out(n, seed, "depth")
    told = Figures()
    with TemporaryDirectory() as folder:
        empty = _write(Path(folder) / "empty.png", np.full((CANVAS, CANVAS, 3), 128, np.uint8))
        planes = [layers(scene, sheet) for scene in scenes]
        jobs = [
            {
                "task": "depth2img",
                "prompt": scene.caption,
                "init_img": empty,
                "strength": 1.0,
                "depth": _write(Path(folder) / f"{row}.png", plane * 255),
            }
            for row, (scene, plane) in enumerate(zip(scenes, planes, strict=True))
        ]
        images = list(solve(jobs))
    _found(SHAPED, scenes, images, finder, told)
    overlaps = [
        _overlap(silhouette(image), plane > 0) for image, plane in zip(images, planes, strict=True)
    ]
    true = [
        _overlap(silhouette(render(scene, sheet)), plane > 0)
        for scene, plane in zip(scenes, planes, strict=True)
    ]
    told.figures[SILHOUETTE] = float(np.mean(overlaps))
    told.extra["depth, the same of the data's own drawings"] = float(np.mean(true))
    shapes = (np.repeat(plane[..., None] * 255, 3, axis=2) for plane in planes)
    told.shown = _some(shapes, images, scenes)
    return told


def upscaling(n: int, seed: int, sheet: GlyphSheet, solve: Solve) -> Figures:
    """Small copies of scenes, without a prompt, beside bicubic interpolation of the same."""
    scenes = held_out(n, seed, "upscaling")
    true = np.stack([render(scene, sheet) for scene in scenes])
    told = Figures()
    small = [_scaled(image, CANVAS // 4) for image in true]
    with TemporaryDirectory() as folder:
        jobs = [
            {"task": "upscale", "init_img": _write(Path(folder) / f"{row}.png", image)}
            for row, image in enumerate(small)
        ]
        images = list(solve(jobs))
    bicubic = np.stack([_scaled(image, CANVAS) for image in small])
    ours, theirs = (float(psnr(true, made).mean()) for made in (np.stack(images), bicubic))
    told.figures[GAIN] = ours - theirs
    told.extra |= {"upscaling, PSNR in dB": ours, "upscaling, PSNR of bicubic": theirs}
    told.shown = _some(bicubic, images, scenes)
    return told


def silhouette(image: Pixels) -> NDArray[np.bool_]:
    """Where an image differs from its own background: [H, W]."""
    difference = image.astype(np.float32) - border_colour(image)
    return np.asarray(np.sqrt(np.square(difference).sum(axis=2)) > _DIFFERENT)


def _overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


def _another(rng: random.Random, glyph: Glyph) -> Glyph:
    return rng.choice([other for other in GLYPHS if other != glyph])


def _found(
    name: str, scenes: Sequence[Scene], images: Sequence[Pixels], finder: Finder, told: Figures
) -> None:
    """Retrieval of the glyph of each scene, into the figures."""
    right = []
    for scene, image in zip(scenes, images, strict=True):
        found = finder.one(image).glyph
        right.append(found == scene.glyphs[0].glyph)
        if not right[-1]:
            shown = f"{found.name} on {background_of(image).name}"
            told.failures.append({"prompt": scene.caption, "found": shown})
    told.figures[name] = float(np.mean(right))


def _some(
    given: Sequence[Pixels] | Iterator[Pixels], made: Sequence[Pixels], scenes: Sequence[Scene]
) -> list[tuple[Pixels, Pixels, str]]:
    rows = zip(given, made, scenes, strict=True)
    return [(before, after, scene.caption) for before, after, scene in rows][:6]


def _write(path: Path, pixels: NDArray[np.uint8]) -> str:
    Image.fromarray(pixels).save(path)
    return str(path)


def _scaled(image: Pixels, side: int) -> Pixels:
    scaled = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(scaled, dtype=np.uint8)
