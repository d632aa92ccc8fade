"""The figures of the models for images are right for true images and low for wrong ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import demo_tasks as tasks
from benchmarks.retrieval import Finder
from ldm.training.data import GlyphSheet, Pixels, render
from ldm.training.glyphs import GLYPHS, backgrounds_of

N = 6


def read(path: str) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.uint8)


def test_scenes_are_held_out_and_depend_on_the_seed_alone() -> None:
    scenes = tasks.held_out(50, 1, "depth")
    assert scenes == tasks.held_out(50, 1, "depth") != tasks.held_out(50, 2, "depth")
    for scene in scenes:
        assert scene.background in backgrounds_of(scene.glyphs[0].glyph, "test")
        assert scene.background.name in scene.caption


def test_inpainting_wants_the_prompt_s_glyph_and_the_rest_untouched(
    sheet: GlyphSheet, finder: Finder
) -> None:
    truth = [render(scene, sheet) for scene in tasks.held_out(N, 3, "inpainting")]

    def right(jobs: Sequence[dict[str, Any]]) -> Iterator[Pixels]:
        for job, image in zip(jobs, truth, strict=True):
            assert read(job["init_img"])[read(job["mask"]) == 0].size
            yield image

    told = tasks.inpainting(N, 3, sheet, finder, right)
    assert told.figures == {tasks.INPAINTED: 1.0, tasks.OUTSIDE: 1.0}
    assert not told.failures

    def untouched(jobs: Sequence[dict[str, Any]]) -> Iterator[Pixels]:
        yield from (read(job["init_img"]) for job in jobs)

    told = tasks.inpainting(N, 3, sheet, finder, untouched)
    assert told.figures == {tasks.INPAINTED: 0.0, tasks.OUTSIDE: 1.0}
    assert len(told.failures) == N

    def careless(jobs: Sequence[dict[str, Any]]) -> Iterator[Pixels]:
        for image in truth:
            changed = image.copy()
            changed[0, 0, 0] ^= 1
            yield changed

    told = tasks.inpainting(N, 3, sheet, finder, careless)
    assert told.figures == {tasks.INPAINTED: 1.0, tasks.OUTSIDE: 0.0}


def test_depth_wants_shape_and_glyph(sheet: GlyphSheet, finder: Finder) -> None:
    scenes = tasks.held_out(N, 3, "depth")

    def right(jobs: Sequence[dict[str, Any]]) -> Iterator[Pixels]:
        assert {job["strength"] for job in jobs} == {1.0}
        yield from (render(scene, sheet) for scene in scenes)

    told = tasks.depth(N, 3, sheet, finder, right)
    assert told.figures[tasks.SHAPED] == 1.0
    assert (
        told.figures[tasks.SILHOUETTE] == told.extra["depth, the same of the data's own drawings"]
    )
    assert told.figures[tasks.SILHOUETTE] > 0.85

    def shape_alone(jobs: Sequence[dict[str, Any]]) -> Iterator[Pixels]:
        for job, scene in zip(jobs, scenes, strict=True):
            yield np.where(read(job["depth"]) > 0, 255 - np.array(scene.background.rgb), 90).astype(
                np.uint8
            )

    told = tasks.depth(N, 3, sheet, finder, shape_alone)
    assert told.figures[tasks.SHAPED] < 0.5
    assert told.figures[tasks.SILHOUETTE] > 0.9


def test_upscaling_is_measured_against_bicubic(sheet: GlyphSheet) -> None:
    def bicubic(jobs: Sequence[dict[str, Any]]) -> Iterator[Pixels]:
        for job in jobs:
            with Image.open(job["init_img"]) as small:
                assert small.size == (32, 32)
                yield np.asarray(small.resize((128, 128), Image.Resampling.BICUBIC))

    told = tasks.upscaling(N, 3, sheet, bicubic)
    assert told.figures[tasks.GAIN] == 0
    assert 15 < told.extra["upscaling, PSNR of bicubic"] < 35

    def right(jobs: Sequence[dict[str, Any]]) -> Iterator[Pixels]:
        yield from (render(scene, sheet) for scene in tasks.held_out(N, 3, "upscaling"))

    assert tasks.upscaling(N, 3, sheet, right).figures[tasks.GAIN] > 20


def test_there_are_scenes_enough() -> None:
    assert len(tasks.held_out(200, 0, "depth")) == 200
    assert 2 * len(GLYPHS) >= 200
