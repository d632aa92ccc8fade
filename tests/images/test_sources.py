"""Images, masks and depth maps as a job reads them and lays them on a canvas; no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.errors import ImageError, JobError
from ldm.images.sources import check_unchanged, digests, read_sources, wanted_size
from ldm.jobs.job import Job
from tests.tiny_images import read, save, scene, square_mask


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "in.png", scene(75, 50))
    save(tmp_path / "mask.png", square_mask(75, 50))
    save(tmp_path / "depth.png", scene(75, 50)[..., 0])
    return tmp_path


def job(task: str = "img2img", **fields: Any) -> Job:
    return Job(**{"task": task, "init_img": "in.png", **fields})


@pytest.mark.parametrize(
    ("size", "multiple", "canvas"),
    [
        ((75, 50), 8, (128, 128)),
        ((130, 97), 8, (192, 128)),
        ((128, 192), 64, (128, 192)),
        ((129, 193), 96, (192, 384)),  # of 64 as well, since the networks know no other
    ],
)
def test_an_image_lies_at_its_own_size_on_a_canvas_that_the_model_takes(
    folder: Path, size: tuple[int, int], multiple: int, canvas: tuple[int, int]
) -> None:
    save(folder / "in.png", scene(*size))
    sources = read_sources(job(), multiple)
    assert (sources.size, sources.canvas) == (size, canvas)
    assert sources.image is not None
    assert sources.image.shape == (*canvas[::-1], 3)
    width, height = size
    assert (sources.image[:height, :width] == scene(*size)).all()
    assert (sources.image[height:, :width] == scene(*size)[-1]).all()
    assert (sources.finish(sources.image, job()) == scene(*size)).all()


def test_an_image_need_not_be_made_larger_than_the_network_wants(folder: Path) -> None:
    save(folder / "in.png", scene(75, 50))
    assert read_sources(job(), 8, padded=False).canvas == (80, 56)


def test_an_upscaler_takes_a_smaller_canvas_and_gives_four_times_the_image(folder: Path) -> None:
    save(folder / "in.png", scene(17, 13))
    sources = read_sources(job("upscale"), 32)
    assert (sources.size, sources.canvas) == ((68, 52), (96, 64))
    assert sources.image is not None
    assert sources.image.shape == (16, 24, 3)
    large = np.repeat(np.repeat(sources.image, 4, axis=0), 4, axis=1)
    expected = np.repeat(np.repeat(scene(17, 13), 4, axis=0), 4, axis=1)
    assert (sources.finish(large, job("upscale")) == expected).all()


def test_what_lies_under_transparency_is_white_unless_it_is_repainted_or_was_dropped(
    folder: Path,
) -> None:
    alpha = 255 - square_mask(75, 50)
    save(folder / "in.png", np.dstack([scene(75, 50), alpha]))
    white = scene(75, 50)
    white[alpha == 0] = 255
    cases = [(job(), white), (job("depth2img", depth="depth.png"), white)]
    cases += [(job("inpaint"), scene(75, 50))]
    for asked, expected in cases:
        original = read_sources(asked, 8).original
        assert original is not None
        assert (original == expected).all()
    image = read_sources(job(fit="floor-32"), 8).image
    plain = Image.fromarray(scene(75, 50)).resize((64, 32), Image.Resampling.LANCZOS)
    assert image is not None
    assert (image == np.asarray(plain)).all()


@pytest.mark.parametrize("how", ["resize", "crop", "pad"])
def test_mask_and_depth_stay_registered_with_the_image(how: str) -> None:
    """Wherever the image goes, what was drawn into all three at one place is at one place."""
    mark = np.zeros((50, 75), np.uint8)
    mark[20:30, 30:45] = 255
    save(Path("in.png"), np.dstack([mark] * 3))
    save(Path("mask.png"), mark)
    asked = job("inpaint", mask="mask.png", width=150, height=60, fit=how)
    sources = read_sources(asked, 8)
    assert sources.size == (150, 60)
    assert sources.image is not None
    assert sources.mask is not None
    assert sources.mask.shape == sources.image.shape[:2]
    seen, marked = sources.image[..., 0] > 127, sources.mask >= 0.5
    assert (seen != marked).mean() < 0.01
    assert marked.sum() > 100
    depth = read_sources(job("depth2img", depth="mask.png", width=150, height=60, fit=how), 8).depth
    assert depth is not None
    assert (seen != (depth >= 0.5)).mean() < 0.01


def test_outpainting_adds_room_and_a_mask_for_it() -> None:
    sources = read_sources(job("inpaint", outpaint="10,0,0,20"), 8)
    assert sources.size == (85, 70)
    assert sources.area is not None
    assert (sources.area[50:] == 1).all()
    assert (sources.area[:, :10] == 1).all()
    assert (sources.area[:42, 18:] == 0).all()
    painted = np.zeros((*sources.canvas[::-1], 3), np.uint8)
    made = sources.finish(painted, job("inpaint", outpaint="10,0,0,20"))
    assert (made[:42, 18:] == scene(75, 50)[:42, 8:]).all()
    assert (made[50:] == 0).all()


def test_only_what_is_masked_is_taken_unless_all_is_wanted() -> None:
    asked = job("inpaint", mask="mask.png", feather=4)
    sources = read_sources(asked, 8)
    painted = np.full((*sources.canvas[::-1], 3), 9, np.uint8)
    made = sources.finish(painted, asked)
    outside = square_mask(75, 50) == 0
    assert (made[outside] == scene(75, 50)[outside]).all()
    assert (made[25, 37] == 9).all()
    whole = sources.finish(painted, job("inpaint", mask="mask.png", no_paste=True))
    assert whole.shape == (50, 75, 3)
    assert (whole == 9).all()


def test_a_mask_saved_as_jpeg_has_sharp_edges() -> None:
    save(Path("mask.jpg"), square_mask(75, 50), quality=30)
    grey = read(Path("mask.jpg"))
    assert ((grey > 0) & (grey < 128)).any()
    asked = job("inpaint", mask="mask.jpg", feather=0)
    sources = read_sources(asked, 8)
    made = sources.finish(np.full((*sources.canvas[::-1], 3), 9, np.uint8), asked)
    assert (made[grey < 128] == scene(75, 50)[grey < 128]).all()
    assert (made[grey >= 128] == 9).all()


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(None, None, (75, 50)), (150, None, (150, 100)), (None, 1, (2, 1)), (7, 9, (7, 9))],
)
def test_the_size_that_is_wanted(
    width: int | None, height: int | None, expected: tuple[int, int]
) -> None:
    assert wanted_size(job(width=width, height=height), (75, 50)) == expected


def test_a_job_without_images_has_a_size_alone() -> None:
    sources = read_sources(Job(width=64, height=32), 8)
    assert (sources.canvas, sources.size, sources.image) == ((64, 32), (64, 32), None)
    varied = Job(task="variations", images=("in.png", "in.png"), width=64, height=32)
    assert [image.shape for image in read_sources(varied, 8).images] == [(50, 75, 3)] * 2


def test_files_that_do_not_fit_together(folder: Path) -> None:
    save(folder / "wide.png", square_mask(76, 50))
    with pytest.raises(ImageError, match=r"wide.png: the mask is 76x50 and the image 75x50"):
        read_sources(job("inpaint", mask="wide.png"), 8)
    with pytest.raises(ImageError, match=r"wide.png: the depth map is 76x50"):
        read_sources(job("depth2img", depth="wide.png"), 8)
    with pytest.raises(JobError, match="no transparent part"):
        read_sources(job("inpaint"), 8)
    with pytest.raises(ImageError, match="75x50, but must be 64x64"):
        read_sources(job(width=64, height=64, fit="error"), 8)


def test_what_an_image_was_made_from_is_known_again(folder: Path) -> None:
    recorded = digests(job("inpaint", mask="mask.png"))
    assert list(recorded) == ["in.png", "mask.png"]
    check_unchanged(recorded, "out.png")
    save(folder / "mask.png", 255 - square_mask(75, 50))
    with pytest.raises(ImageError, match=r"^mask.png: has changed since out.png was made"):
        check_unchanged(recorded, "out.png")
    (folder / "in.png").unlink()
    with pytest.raises(ImageError, match=r"^in.png: no such file.*out.png was made from it"):
        check_unchanged(recorded, "out.png")
