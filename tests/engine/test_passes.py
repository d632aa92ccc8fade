"""Passes: a second engine job from the latents or the images of the first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ldm.cli.app import run
from ldm.engine.engine import Engine
from ldm.engine.events import BatchStarted, Event, ignore
from ldm.engine.passes import enlarged_image, enlarged_latents, passes_of
from ldm.images.sources import Sources
from ldm.images.texts import read_record
from ldm.jobs.job import Job
from ldm.jobs.metadata import describe
from ldm.sampling.noise import ImageNoise
from ldm.sampling.samplers import final_latent, find_sampler
from ldm.sampling.schedule import make_grid
from tests.comparing_runs import assert_same, one_by_one, tiny_engine
from tests.tiny_images import read
from tests.tiny_runs import QUICK


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Engine, Job]:
    """An engine of a tiny model and a job of two passes for it; its folder is the working one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LDM_MODELS", raising=False)
    return tiny_engine(tmp_path, prompt="a cat", steps=3, hires="2", hires_strength=0.5)


def test_a_factor_has_become_a_size(tiny: tuple[Engine, Job]) -> None:
    assert tiny[1].hires == "32x32"


def test_the_second_pass_is_img2img_from_the_enlarged_latent(tiny: tuple[Engine, Job]) -> None:
    """The web UI's hires fix by hand: 3 of int(3 / 0.5) steps, noise of the same seed."""
    engine, job = tiny
    model = engine.model
    first = next(engine.run(replace(job, hires=None))).latent
    latent = F.interpolate(first[None], scale_factor=2, mode="bilinear", align_corners=False)
    sigmas = make_grid("ddim", model.schedule, 6, "exact")[3:]
    noise = ImageNoise((3,), "philox", torch.device("cpu")).draw(tuple(latent.shape))
    plain, sources = replace(job, hires=None), Sources((16, 16), (16, 16))
    draws = engine.stages.draws(plain, sources)
    [guide] = engine.stages.encode(plain, sources, draws, "auto", ignore).guides
    sampler = find_sampler("ddim")
    with torch.inference_mode():
        x = latent + noise * sigmas[0]
        denoise = model.denoiser(guide.conds[0], guide.uncond, 3.0)
        x = sampler.fn(denoise, x, sigmas, noise=ImageNoise((3,), "philox", torch.device("cpu")))
        expected = final_latent(sampler, x, float(sigmas[-1]))[0]
    [result] = engine.run(job)
    assert result.image.shape == (32, 32, 3)
    assert (result.latent - expected).abs().max() < 1e-4
    assert (result.latent - latent[0]).abs().max() > 1e-2  # it is another image than before


@pytest.mark.parametrize("upscaler", ["latent", "latent-bicubic", "latent-nearest", "lanczos"])
def test_every_image_is_as_alone(tiny: tuple[Engine, Job], upscaler: str) -> None:
    engine, job = tiny
    jobs = [
        replace(job, hires_upscaler=upscaler, prompt=text, seed=seed)
        for seed, text in enumerate(["a cat", "a dog", "a cat"])
    ]
    assert_same(list(engine.run_all(jobs)), one_by_one(engine, jobs))


def test_strength_0_enlarges_alone(tiny: tuple[Engine, Job]) -> None:
    engine, job = tiny
    first = next(engine.run(replace(job, hires=None))).latent
    [result] = engine.run(replace(job, hires_strength=0.0, hires_upscaler="latent-nearest"))
    expected = first.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(result.latent, expected)


def test_progress_names_the_pass(tiny: tuple[Engine, Job]) -> None:
    engine, job = tiny
    events: list[Event] = []
    list(engine.run(job, events.append))
    begun = [event for event in events if isinstance(event, BatchStarted)]
    assert begun == [BatchStarted(1, 3), BatchStarted(1, 3, "hires")]


def test_no_passes_without_a_flag(tiny: tuple[Engine, Job]) -> None:
    assert passes_of(replace(tiny[1], hires=None), 8) == []


def test_other_proportions_are_cropped_in_the_middle() -> None:
    latents = torch.arange(16.0).reshape(1, 1, 4, 4)
    wide = enlarged_latents(latents, (8, 4), "nearest-exact")
    assert torch.equal(wide[0, 0, :, 0], torch.tensor([4.0, 4.0, 8.0, 8.0]))
    assert wide.shape == (1, 1, 4, 8)
    image = np.zeros((4, 4, 3), np.uint8)
    assert enlarged_image(image, (8, 12), Image.Resampling.LANCZOS).shape == (12, 8, 3)


def test_the_record_holds_both_passes_and_rerun_repeats_them(
    tiny: tuple[Engine, Job], tmp_path: Path
) -> None:
    words = ["txt2img", "--prompt", "a cat", *QUICK, "--hires", "2", "--hires-steps", "2"]
    assert run([*words, "--seed", "5", "-o", "one.png", "-q"]) == 0
    assert read(tmp_path / "one.png").shape == (32, 32, 3)
    record = read_record(tmp_path / "one.png")
    settings = describe(record).settings
    assert (settings["Size"], settings["Hires upscale"]) == ("16x16", "2")
    assert (settings["Hires upscaler"], settings["Hires steps"]) == ("Latent", "2")
    assert settings["Denoising strength"] == "0.7"
    assert run(["rerun", "one.png", "-o", "two.png", "-q"]) == 0
    assert (tmp_path / "two.png").read_bytes() == (tmp_path / "one.png").read_bytes()


def test_the_plan_shows_the_finished_size(
    tiny: tuple[Engine, Job], capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["txt2img", "--prompt", "a cat", *QUICK, "--hires", "48x32", "--dry-run"]
    assert run(words) == 0
    assert "48x32" in capfd.readouterr().out
