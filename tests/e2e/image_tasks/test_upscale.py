"""upscale as a user meets it: words in; files and lines out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ldm.cli.app import run
from ldm.engine.results import Result
from ldm.images.texts import read_record
from tests.image_task_runs import PROMPT, Models, away, draw, size_of
from tests.tiny_images import read, save, scene


@pytest.fixture
def small(folder: Path) -> list[str]:
    """The flag for a small image, whose large one comes soon."""
    return ["-i", str(save(folder / "small.png", scene(17, 13)).name)]


def test_an_upscaled_image_is_four_times_as_large(
    models: Models, small: list[str], results: list[Result]
) -> None:
    argv = [*small, *models("upscale")]
    made = draw("upscale", *argv)
    assert made.shape == (52, 68, 3)
    assert (draw("upscale", *argv, "--prompt", "", "--noise-level", "20") == made).all()
    for more in (PROMPT, ["--noise-level", "0"], ["--noise-level", "350"]):
        draw("upscale", *argv, *more)
    first, _, *others = (result.latent for result in results)
    assert min(away(other, first) for other in others) > 1e-3


def test_a_folder_and_a_pattern_are_upscaled_each_by_itself(
    models: Models, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "in").mkdir()
    for width in (9, 17):
        save(folder / "in" / f"{width}.png", scene(width, 13))
    argv = [*models("upscale"), "--steps", "1"]
    for name in ("in", "in/*.png"):
        assert run(["upscale", "-i", name, *argv, "--outdir", "out", "--overwrite"]) == 0
    made = sorted((folder / "out" / "samples").iterdir())
    assert [size_of(path) for path in made] == [(68, 52), (36, 52)] * 2
    alone = draw("upscale", "-i", "in/9.png", *argv)
    assert (read(made[1]) == alone).all()
    assert read_record(made[1]).inputs.keys() == {"in/9.png"}
    assert run(["upscale", "-i", "in", *argv, "-o", "one.png"]) == 2
    assert "makes 2" in capfd.readouterr().err


def test_a_large_image_is_denoised_in_tiles(models: Models) -> None:
    save(Path("wide.png"), scene(40, 12))
    argv = ["-i", "wide.png", *models("upscale"), "--steps", "1"]
    whole = draw("upscale", *argv)
    tiled = draw("upscale", *argv, "--tile", "32")
    assert tiled.shape == whole.shape == (48, 160, 3)
    away = np.abs(tiled - whole).mean()
    assert 0 < away < 10


def test_an_upscaler_without_text_or_noise(models: Models, small: list[str]) -> None:
    """latent-diffusion's bsr_sr."""
    argv = [*small, *models("superres")]
    made = draw("upscale", *argv)
    assert made.shape == (52, 68, 3)
    save(Path("small.png"), np.flipud(scene(17, 13)))
    assert np.abs(draw("upscale", *argv) - made).mean() > 1
