"""inpaint as a user meets it: words in; files and lines out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.cli.app import run
from ldm.engine.problem import Given
from ldm.engine.results import Result
from ldm.engine.tasks import inpaint
from ldm.images.sources import read_sources
from ldm.images.texts import read_texts
from ldm.jobs.job import Job
from ldm.models.load import load_model
from ldm.sampling.noise import ImageNoise
from tests.image_task_runs import PROMPT, Models, draw, encoded
from tests.tiny_images import save, scene, square_mask

HOLE = ["-i", "in.png", "--mask", "mask.png"]


@pytest.mark.parametrize("name", ["text", "inpaint", "textless"])
def test_what_is_not_masked_stays_byte_for_byte(models: Models, name: str) -> None:
    words = [] if name == "textless" else PROMPT
    argv = [*words, *models(name)]
    outside = square_mask(75, 50) == 0
    for feather in ("0", "8"):
        made = draw("inpaint", *HOLE, *argv, "--feather", feather)
        assert (made == scene(75, 50))[outside].all()
        assert np.abs(made - scene(75, 50))[~outside].mean() > 5
    own = draw("inpaint", *HOLE, *argv, "--no-paste")
    assert np.abs(own - scene(75, 50))[outside].mean() > 5
    assert (made[25, 37] == own[25, 37]).all()  # in the middle, past the feather


def test_a_mask_may_be_inverted_or_be_the_transparency(models: Models) -> None:
    argv = [*PROMPT, *models("inpaint")]
    expected = draw("inpaint", *HOLE, *argv)
    mask = square_mask(75, 50)
    save(Path("black.png"), 255 - mask)
    made = draw("inpaint", "-i", "in.png", "--mask", "black.png", "--mask-invert", *argv)
    assert (made == expected).all()
    save(Path("glass.png"), np.dstack([scene(75, 50), 255 - mask]))
    assert (draw("inpaint", "-i", "glass.png", *argv) == expected).all()


def test_a_line_between_two_latents_is_repainted(models: Models, results: list[Result]) -> None:
    thin = np.zeros((50, 75), np.uint8)
    thin[:, 37] = 255
    save(Path("mask.png"), thin)
    argv = [*HOLE, *PROMPT, *models("text"), "--sampler", "dpmpp_2m"]
    draw("inpaint", *argv)
    given = np.pad(scene(75, 50), ((0, 78), (0, 53), (0, 0)), mode="edge")
    away = (results[0].latent - encoded(load_model(models("text")[1]).model, given)).abs().mean(0)
    assert away[:, 4].min() > 10 * away[:, 3].max()


@pytest.mark.parametrize("name", ["text", "inpaint"])
def test_an_image_grows_beyond_its_edges(models: Models, name: str) -> None:
    made = draw("inpaint", "-i", "in.png", *PROMPT, *models(name), "--outpaint", "5,0,40,3")
    assert made.shape == (53, 120, 3)
    assert (made[:42, 13:72] == scene(75, 50)[:42, 8:67]).all()
    assert (made[:, 81:] != made[:, 80:81]).any()  # not just the edge, repeated


def test_the_textless_model_is_shown_what_the_original_script_showed(models: Models) -> None:
    """scripts/inpaint.py of latent-diffusion, make_batch and what follows."""
    model = load_model(models("textless")[1]).model
    model.scale_factor = 0.5
    save(Path("in.png"), scene(128, 64))
    save(Path("mask.png"), np.minimum(square_mask(128, 64), 155))  # more than a half: masked
    job = Job(task="inpaint", init_img="in.png", mask="mask.png", steps=2, scale=1.0, seed=1)
    job = replace(job, sampler="ddim", strength=1.0, fit="floor-64")
    with torch.inference_mode():
        [guide] = inpaint(job, Given(model, read_sources(job, 4))).guides
        concat = guide.conds[0].concat
    image = torch.from_numpy(scene(128, 64)).float().permute(2, 0, 1)[None] / 255
    mask = (torch.from_numpy(square_mask(128, 64))[None, None] > 0).float()
    masked_image = ((1 - mask) * image) * 2 - 1
    with torch.inference_mode():
        c = model.first_stage_model.quant_conv(model.first_stage_model.encoder(masked_image))
    cc = torch.nn.functional.interpolate(mask * 2 - 1, size=c.shape[-2:])
    assert concat is not None
    assert torch.allclose(concat, torch.cat((c, cc), dim=1), atol=1e-5)
    assert set(concat[0, -1].unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("name", ["inpaint", "textless"])
def test_an_inpainting_model_keeps_more_of_the_hole_at_less_strength(
    models: Models, results: list[Result], name: str
) -> None:
    for strength in ("0", "0.5", "1"):
        draw("inpaint", *HOLE, *PROMPT, *models(name), "--strength", strength)
    first, second, third = (result.latent for result in results)
    assert 0 < (second - first).abs().mean() < (third - first).abs().mean()


@pytest.mark.parametrize("name", ["text", "inpaint"])
def test_what_lies_under_the_mask_at_the_start(
    models: Models, results: list[Result], name: str
) -> None:
    """With no steps left the latent is what sampling would have started from."""
    argv = [*HOLE, *PROMPT, *models(name), "--strength", "0", "--seed", "3"]
    for fill in ("original", "fill", "noise", "nothing"):
        draw("inpaint", *argv, "--inpaint-fill", fill)
    draw("inpaint", *argv)
    original, fill, noise, nothing, default = (result.latent for result in results)
    assert torch.equal(original, default)
    hole = (nothing == 0).all(dim=0)
    assert 4 <= hole.sum() < hole.numel() / 2
    assert (fill != original)[:, hole].all()
    drawn = ImageNoise([3], "philox", torch.device("cpu")).draw((1, *noise.shape))[0]
    assert torch.equal(noise[:, hole], drawn[:, hole])
    assert torch.equal(noise[:, ~hole], nothing[:, ~hole])


def test_a_masked_area_has_the_models_size_and_reruns(
    models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    save(Path("in.png"), scene(300, 200))
    save(Path("mask.png"), square_mask(300, 200))
    argv = [*HOLE, *PROMPT, *models("inpaint"), "--steps", "1", "--W", "64", "--H", "64"]
    argv += ["--inpaint-area", "masked", "--mask-blur", "2", "--inpaint-fill", "fill"]
    made = draw("inpaint", *argv, "--json")
    printed = json.loads(capsys.readouterr().out)
    assert (printed["width"], printed["height"]) == (300, 200) == made.shape[1::-1]
    texts = read_texts(Path("out.png"))["parameters"]
    wanted = (
        "Mask blur: 2, Inpaint area: Only masked, Masked area padding: 32, Masked content: fill"
    )
    assert wanted in texts
    assert "Size: 64x64" in texts
    assert run(["rerun", "out.png", "-o", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("out.png").read_bytes()


def test_a_folder_may_have_a_seed_for_each_image(
    models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in").mkdir()
    for name in "abc":
        save(Path(f"in/{name}.png"), scene(75, 50))
    argv = ["inpaint", "-i", "in", "--mask", "mask.png", *PROMPT, *models("text"), "--dry-run"]
    seeds = []
    for more in ([], ["--seed-per-image"], ["--seed-per-image", "--n_samples", "2"]):
        assert run([*argv, "--json", "--seed", "7", *more]) == 0
        lines = capsys.readouterr().out.splitlines()
        seeds.append([json.loads(line)["seed"] for line in lines])
    assert seeds == [[7, 7, 7], [7, 8, 9], [7, 8, 9, 10, 11, 12]]
    argv = [word for word in argv if word not in ("--seed", "7")]
    assert run([*argv, "--seeds", "1,2", "--seed-per-image"]) == 2
    assert "omit --seeds" in capsys.readouterr().err


def test_the_seed_that_an_image_was_made_from_gets_a_hint(
    models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    draw("inpaint", *HOLE, *PROMPT, *models("text"), "--seed", "5", out="in2.png")
    for seed, is_hinted in (("5", True), ("6", False)):
        capsys.readouterr()
        argv = ["inpaint", "-i", "in2.png", "--mask", "mask.png", *PROMPT, *models("text")]
        argv = [word for word in argv if word not in ("-q", "--quiet")]
        assert run([*argv, "--seed", seed, "--dry-run"]) == 0
        assert ("made from seed 5, too" in capsys.readouterr().err) == is_hinted


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--mask-blur", "4", "--feather", "3"], "--mask-blur and --feather exclude each other"),
        (["--mask-blur", "-1"], "--mask-blur must be 0 to 256"),
        (["--inpaint-padding", "4"], "does nothing without --inpaint-area masked"),
        (["--inpaint-area", "masked", "--fit", "crop"], "--fit does nothing with"),
        (["--inpaint-fill", "grey"], "--inpaint-fill 'grey' is not known"),
        (["--hires", "2"], "--hires is no option of this command, but of txt2img"),
    ],
)
def test_refused_options(
    models: Models, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert run(["inpaint", *HOLE, *PROMPT, *models("text"), *argv]) == 2
    assert message in capsys.readouterr().err
