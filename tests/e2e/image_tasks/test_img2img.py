"""img2img as a user meets it: words in; files and lines out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli.app import main_script, run
from ldm.engine.results import Result
from ldm.images.canvas import latent_mask
from ldm.jobs.fields import SAMPLER_ALIASES
from ldm.models.load import load_model
from tests.image_task_runs import PROMPT, Models, draw, encoded, size_of, through_autoencoder
from tests.tiny_images import save, scene, square_mask


def test_img2img_takes_every_flag_of_the_originals(models: Models, folder: Path) -> None:
    model = models("text")
    (folder / "prompts.txt").write_text("a cat\na dog\n", encoding="utf-8")
    words = ["--init-img", "in.png", "--outdir", "out", "--ddim_steps", "4", "--fixed_code"]
    words += ["--ddim_eta", "0.0", "--n_iter", "2", "--C", "4", "--f", "8", "--n_samples", "2"]
    words += ["--n_rows", "2", "--scale", "5", "--strength", "0.5", "--ckpt", model[1], "--seed"]
    words += ["42", "--precision", "full", "--config", f"{model[1][:-11]}yaml", "--device", "cpu"]
    with pytest.raises(SystemExit) as caught:
        main_script("img2img", [*words, "--plms", "--from-file", "prompts.txt"])
    assert caught.value.code == 0
    assert len(list((folder / "out" / "samples").iterdir())) == 4
    assert size_of("out/samples/00000.png") == (64, 32)  # as the first version had it
    assert size_of("out/grid-0000.png") == (2 + 2 * 66, 2 + 2 * 34)
    more = ["--skip_grid", "--skip_save", *PROMPT]
    assert run(["img2img", *words, *more, "--outdir", "other"]) == 0
    assert not (folder / "other").exists()


@pytest.mark.parametrize("name", ["text", "text-v"])
def test_no_strength_gives_the_image_through_the_autoencoder(models: Models, name: str) -> None:
    save(Path("in.png"), scene(128, 192))
    ours = draw("img2img", "-i", "in.png", *PROMPT, *models(name), "--strength", "0")
    model = load_model(models(name)[1]).model
    assert np.abs(ours - through_autoencoder(model, scene(128, 192))).max() <= 1


def test_strength_is_the_share_of_the_steps_that_is_run(models: Models) -> None:
    argv = ["-i", "in.png", *PROMPT, *models("text")]
    made = [draw("img2img", *argv, "--strength", s) for s in ("0", "0.2", "0.5", "1")]
    away = [float(np.abs(image - made[0]).mean()) for image in made]
    assert away[0] == away[1] == 0  # of four steps a fifth is none
    assert 0 < away[2] < away[3]


def test_the_originals_added_noise_where_no_step_was_left(
    models: Models, results: list[Result]
) -> None:
    argv = ["-i", "in.png", *PROMPT, *models("text")]
    for strength in ("0.2", "0"):
        draw("img2img", *argv, "--strength", strength, "--schedule-compat", "ldm")
    noised, clean = (result.latent for result in results)
    sigma = float(load_model(models("text")[1]).model.schedule.sigmas[1])
    noise = (noised * (1 + sigma**2) ** 0.5 - clean) / sigma
    assert abs(float(noise.std()) - 1) < 0.1


@pytest.mark.parametrize("sampler", SAMPLER_ALIASES)
def test_every_sampler_draws_from_an_image_and_around_a_hole(
    models: Models, results: list[Result], sampler: str
) -> None:
    save(Path("in.png"), scene(64, 64))
    save(Path("mask.png"), square_mask(64, 64))
    argv = ["-i", "in.png", *PROMPT, *models("text"), "--sampler", sampler, "--steps", "3"]
    argv += ["--fit", "floor-64"]  # without an edge around it
    draw("img2img", *argv, "--strength", "0.7")
    pasted = draw("inpaint", *argv, "--mask", "mask.png")
    given = encoded(load_model(models("text")[1]).model, scene(64, 64))
    whole, part = ((result.latent - given).abs().mean(0) for result in results)
    free = torch.from_numpy(latent_mask(square_mask(64, 64) / 255, 8, 8)) > 0
    assert whole[free].mean() > 0.1
    assert whole[~free].mean() > 0.1
    assert part[free].mean() > 0.1
    # The originals' way, which is ddim's, lets go of the rest in the last step.
    assert part[~free].mean() < (0.5 if sampler == "ddim" else 0.1) * part[free].mean()
    inside = square_mask(64, 64) > 0
    assert (pasted == scene(64, 64))[~inside].all()
    assert not (pasted == scene(64, 64))[inside].all()


@pytest.mark.parametrize("size", [(75, 50), (130, 97), (9, 200)])
def test_an_image_keeps_its_size(models: Models, size: tuple[int, int]) -> None:
    save(Path("in.png"), scene(*size))
    save(Path("mask.png"), square_mask(*size))
    save(Path("depth.png"), scene(*size)[..., 0])
    argv = ["-i", "in.png", *PROMPT, "--steps", "1"]
    made = draw("img2img", *argv, *models("text"), "--steps", "1")
    assert made.shape == (*size[::-1], 3)
    for name in ("text", "inpaint"):
        made = draw("inpaint", *argv, "--mask", "mask.png", *models(name), "--steps", "1")
        assert made.shape == (*size[::-1], 3)
    made = draw("depth2img", *argv, "--depth", "depth.png", *models("depth"), "--steps", "1")
    assert made.shape == (*size[::-1], 3)


def test_an_image_is_turned_and_laid_on_white(models: Models) -> None:
    argv = [*PROMPT, *models("text"), "--strength", "0"]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    save(Path("turned.png"), np.rot90(scene(75, 50)), exif=exif)
    upright = draw("img2img", "-i", "in.png", *argv)
    assert (draw("img2img", "-i", "turned.png", *argv) == upright).all()
    alpha = np.full((50, 75, 1), 255, np.uint8)
    alpha[:20] = 0
    white = scene(75, 50)
    white[:20] = 255
    save(Path("glass.png"), np.concatenate([scene(75, 50), alpha], axis=2))
    save(Path("white.png"), white)
    expected = draw("img2img", "-i", "white.png", *argv)
    assert (draw("img2img", "-i", "glass.png", *argv) == expected).all()


@pytest.mark.parametrize("how", ["resize", "crop", "pad"])
def test_an_image_is_fitted_to_the_size_asked_for(models: Models, how: str) -> None:
    argv = ["-i", "in.png", *PROMPT, *models("text"), "--strength", "0", "--fit", how]
    made = draw("img2img", *argv, "--W", "100", "--H", "40")
    assert made.shape == (40, 100, 3)
    with Image.open("in.png") as image:
        if how == "resize":
            image = image.resize((100, 40), Image.Resampling.LANCZOS)
        elif how == "crop":
            image = image.crop((0, 10, 75, 40)).resize((100, 40), Image.Resampling.LANCZOS)
        else:
            inner = np.asarray(image.resize((60, 40), Image.Resampling.LANCZOS))
            image = Image.fromarray(np.pad(inner, ((0, 0), (20, 20), (0, 0)), mode="edge"))
        image.save("fitted.png")
    argv[1] = "fitted.png"
    assert (draw("img2img", *argv) == made).all()


def test_one_side_keeps_the_proportions(models: Models) -> None:
    argv = ["-i", "in.png", *PROMPT, *models("text"), "--strength", "0"]
    assert draw("img2img", *argv, "--W", "150").shape == (100, 150, 3)
    assert draw("img2img", *argv, "--H", "25").shape == (25, 38, 3)
