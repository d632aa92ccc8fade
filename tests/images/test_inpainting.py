"""The masked area: its soft edge, the box around it, and what fills it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ldm.errors import ImageError
from ldm.images.inpainting import blurred, fill_from_around, masked_crop
from ldm.images.sources import read_sources
from ldm.jobs.job import Job
from tests.tiny_images import save, scene


def mask_of(size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(size[::-1], np.float32)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return mask


def test_a_blur_is_a_gaussian_that_ends_where_the_web_uis_kernel_does() -> None:
    dot = mask_of((41, 41), (20, 20, 21, 21))
    soft = blurred(dot, 4)
    assert soft.sum() == pytest.approx(1, abs=1e-4)
    assert soft[20, 24] / soft[20, 20] == pytest.approx(np.exp(-0.5), rel=1e-4)
    assert soft[20, 30] > 0 == soft[20, 31]
    edge = blurred(mask_of((60, 60), (0, 0, 30, 60)), 4)
    assert edge[:, 0].min() == pytest.approx(1)  # the border of the image is no edge
    assert edge[5, 29] > 0.5 > edge[5, 30]


@pytest.mark.parametrize(
    ("box", "padding", "canvas", "crop", "area"),
    [
        ((40, 40, 60, 60), 10, (64, 64), (30, 30, 70, 70), (0, 0, 64, 64)),
        ((40, 45, 60, 55), 10, (64, 64), (30, 30, 70, 70), (0, 0, 64, 64)),  # made square
        ((90, 40, 100, 60), 10, (64, 64), (80 - 20, 30, 100, 70), (0, 0, 64, 64)),  # moved inside
        ((40, 40, 60, 60), 0, (128, 64), (30, 40, 70, 60), (0, 0, 128, 64)),
        ((0, 10, 100, 30), 0, (64, 64), (0, 0, 100, 80), (0, 6, 64, 57)),  # no room for a square
    ],
)
def test_the_box_around_a_mask(
    box: tuple[int, int, int, int],
    padding: int,
    canvas: tuple[int, int],
    crop: tuple[int, int, int, int],
    area: tuple[int, int, int, int],
) -> None:
    placed = masked_crop(mask_of((100, 80), box), padding, canvas)
    assert (placed.crop, placed.area, placed.canvas) == (crop, area, canvas)


def test_a_hole_takes_the_colours_around_it_and_nothing_of_its_own() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32], image[:, 32:] = (200, 0, 0), (0, 0, 200)
    image[20:44, 20:44] = (0, 255, 0)
    filled = fill_from_around(image, mask_of((64, 64), (20, 20, 44, 44)))
    assert (filled[:18] == image[:18]).all()
    assert filled[..., 1].max() < 10
    assert filled[32, 21, 0] > 150 > 50 > filled[32, 21, 2]
    assert filled[32, 42, 2] > 150 > 50 > filled[32, 42, 0]


def sources_of(tmp_path: Path, box: tuple[int, int, int, int], **fields: object) -> tuple:
    save(tmp_path / "in.png", scene(200, 150))
    mask = mask_of((200, 150), box)
    save(tmp_path / "mask.png", (255 * mask).astype(np.uint8))
    asked = Job(
        task="inpaint", init_img=f"{tmp_path}/in.png", mask=f"{tmp_path}/mask.png", **fields
    )
    return asked, read_sources(asked, 8), mask


def test_only_the_part_around_the_mask_is_generated_and_put_back(tmp_path: Path) -> None:
    masked = {"inpaint_area": "masked", "inpaint_padding": 8, "width": 128, "height": 128}
    box = (120, 40, 160, 80)
    asked, sources, mask = sources_of(tmp_path, box, feather=0, **masked)
    assert (sources.size, sources.canvas) == ((200, 150), (128, 128))
    made = sources.finish(np.full((128, 128, 3), 9, np.uint8), asked)
    assert (made[mask == 0] == scene(200, 150)[mask == 0]).all()
    assert (made[mask == 1] == 9).all()
    asked, sources, _ = sources_of(tmp_path, box, no_paste=True, **masked)
    made = sources.finish(np.full((128, 128, 3), 9, np.uint8), asked)
    crop = mask_of((200, 150), (112, 32, 168, 88))
    assert ((made == 9).all(axis=2) == (crop == 1)).all()


def test_a_blurred_mask_blends_outside_its_edge_or_across_it(tmp_path: Path) -> None:
    box = (60, 40, 140, 110)
    asked, sources, mask = sources_of(tmp_path, box, mask_blur=4, feather=0)
    made = sources.finish(np.full((192, 256, 3), 9, np.uint8), asked)
    assert (made[mask == 1] == 9).mean() > 0.99
    changed = (made != scene(200, 150)).any(axis=2)
    assert changed[70, 58]
    assert not changed[70, :49].any()
    masked = {"inpaint_area": "masked", "inpaint_padding": 8, "width": 128, "height": 128}
    asked, sources, _ = sources_of(tmp_path, box, mask_blur=4, feather=0, **masked)
    assert sources.area[70, 60] == pytest.approx(0.55, abs=0.02)
    with pytest.raises(ImageError, match="too thin for --mask-blur 8"):
        sources_of(tmp_path, (60, 40, 62, 42), mask_blur=8)
