"""img2img, inpaint, depth2img and upscale as a user meets them: words in; files and lines out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm.cli.app import main_script, run
from ldm.engine.results import Result
from ldm.engine.tasks import Given, inpaint
from ldm.images.canvas import latent_mask
from ldm.images.sources import read_sources
from ldm.images.tensors import to_image_array
from ldm.images.texts import read_record
from ldm.jobs.fields import SAMPLER_ALIASES
from ldm.jobs.job import Job
from ldm.models.depth import load_depth_model
from ldm.models.load import load_model
from ldm.models.model import Model
from ldm.models.targets import DEPTH_MODELS
from ldm.nn.dpt import MiDaSInference
from tests.tiny_dpt import TINY_DPT, tiny_dpt
from tests.tiny_images import QUICK, depth_tree, place, read, save, scene, square_mask
from tests.tiny_models import write

PROMPT = ["--prompt", "a cat"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """The flags for a tiny model by its name; each is made once."""
    folder = tmp_path_factory.mktemp("models")

    def flags(name: str) -> list[str]:
        path = folder / f"{name}.safetensors"
        return ["--model", str(path if path.exists() else place(name, folder)), *QUICK]

    return flags


Models = Callable[[str], list[str]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an image of an odd size, its mask and its depth."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LDM_MODELS", raising=False)
    save(tmp_path / "in.png", scene(75, 50))
    save(tmp_path / "mask.png", square_mask(75, 50))
    save(tmp_path / "depth.png", scene(75, 50)[..., 0])
    return tmp_path


def draw(task: str, *argv: str, out: str = "out.png") -> np.ndarray[Any, Any]:
    """The one image that a command line makes."""
    assert run([task, *argv, "-o", out, "--overwrite"]) == 0
    return read(Path(out))


def away(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far latents are apart at most."""
    return float((one - other).abs().max())


def size_of(path: str | Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def encoded(model: Model, image: np.ndarray[Any, Any]) -> torch.Tensor:
    """The latent [C,h,w] of an image [H,W,3]."""
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        return model.encode(x)[0]


def through_autoencoder(model: Model, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the autoencoder alone makes of an image [H,W,3]."""
    with torch.inference_mode():
        return to_image_array(model.decode(encoded(model, image)[None])[0]).astype(np.int16)


# --- img2img --------------------------------------------------------------------------------------


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


# --- inpaint --------------------------------------------------------------------------------------

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
        concat = inpaint(job, Given(model, read_sources(job, 4))).cond.concat
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


# --- depth2img ------------------------------------------------------------------------------------

NEAR = ["-i", "in.png", "--depth", "depth.png"]


def test_depth_may_have_8_or_16_bits_and_be_inverted(models: Models, results: list[Result]) -> None:
    argv = ["-i", "in.png", *PROMPT, *models("depth")]
    depth = scene(75, 50)[..., 0]
    save(Path("deep.png"), depth.astype(np.uint16) * 257)
    save(Path("dark.png"), 255 - depth)
    draw("depth2img", *argv, "--depth", "depth.png")
    draw("depth2img", *argv, "--depth", "deep.png")
    draw("depth2img", *argv, "--depth", "dark.png", "--depth-invert")
    draw("depth2img", *argv, "--depth", "dark.png")
    eight, sixteen, inverted, other = (result.latent for result in results)
    assert torch.equal(sixteen, eight)
    assert away(inverted, eight) < 1e-4
    assert away(other, eight) > 1e-3


def test_from_noise_alone_the_demo_left_a_step_out(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It encoded the image all the same, so the first noise is the second draw."""
    seen: list[tuple[torch.Tensor, float]] = []
    predict = Model.predict

    def look(self: Model, x: torch.Tensor, t: torch.Tensor, *more: Any) -> torch.Tensor:
        seen.append((x, float(t[0])))
        return predict(self, x, t, *more)

    monkeypatch.setattr(Model, "predict", look)
    argv = [*NEAR, *PROMPT, *models("depth"), "--strength", "1", "--scale", "1"]
    draw("depth2img", *argv, "--rng", "cpu", "--noise", "stream", "--schedule-compat", "ldm")
    assert [t for _, t in seen] == [501, 251, 1]
    torch.manual_seed(7)
    _, second = torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16, 16)
    assert torch.allclose(seen[0][0], second, atol=1e-5)
    seen.clear()
    draw("depth2img", *argv)
    assert [t for _, t in seen] == [751, 501, 251, 1]


@pytest.fixture
def seeing(models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The flags of a depth model that has a small depth network of its own."""
    target = "ldm.modules.midas.api.MiDaSInference"
    spec = replace(DEPTH_MODELS[target], build=lambda *_: MiDaSInference(TINY_DPT))
    monkeypatch.setitem(DEPTH_MODELS, target, spec)
    argv = models("depth")
    tree = depth_tree()
    tree["model"]["params"]["depth_stage_config"] = {"target": target}
    write(tree, folder / "seeing.yaml")
    network = {f"depth_model.{key}": value for key, value in tiny_dpt().state_dict().items()}
    save_file({**load_file(argv[1]), **network}, folder / "seeing.safetensors")
    return ["--model", "seeing.safetensors", *QUICK]


def test_depth_is_estimated_saved_and_taken_again(seeing: list[str], results: list[Result]) -> None:
    save(Path("in.png"), scene(96, 64))
    argv = ["-i", "in.png", *PROMPT, *seeing]
    draw("depth2img", *argv, "--save-depth", "seen.png")
    with Image.open("seen.png") as image:
        assert image.mode.startswith("I;16")
        seen = np.asarray(image)
    assert seen.shape == (64, 96)  # the image's own, so that it can be given with it
    assert (seen.min(), seen.max()) == (0, 65535)
    draw("depth2img", *argv, "--depth", "seen.png", "--save-depth", "again.png")
    draw("depth2img", *argv, "--depth", "seen.png", "--depth-invert")
    assert np.array_equal(np.asarray(Image.open("again.png")), seen)
    estimated, given, inverted = (result.latent for result in results)
    assert away(given, estimated) < 0.5 * away(inverted, estimated)


def test_another_depth_network_may_be_given(
    models: Models, seeing: list[str], results: list[Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ldm.models.load.load_depth_model", partial(load_depth_model, sizes=TINY_DPT)
    )
    save_file(dict(tiny_dpt(1).model.state_dict()), "dpt.safetensors")
    argv = ["-i", "in.png", *PROMPT]
    draw("depth2img", *argv, *seeing)
    draw("depth2img", *argv, *seeing, "--depth-model", "dpt.safetensors")
    draw("depth2img", *argv, *models("depth"), "--depth-model", "dpt.safetensors")
    own, other, alone = (result.latent for result in results)
    assert away(other, own) > 1e-3
    assert torch.equal(alone, other)
    assert read_record(Path("out.png")).inputs.keys() == {"in.png", "dpt.safetensors"}


def test_a_checkpoint_that_lost_its_depth_network_takes_a_map(
    models: Models, seeing: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    Path("lost.yaml").write_bytes(Path("seeing.yaml").read_bytes())
    Path("lost.safetensors").write_bytes(Path(models("depth")[1]).read_bytes())
    lost = ["--model", "lost.safetensors", *QUICK]
    expected = draw("depth2img", *NEAR, *PROMPT, *models("depth"))
    assert (draw("depth2img", *NEAR, *PROMPT, *lost) == expected).all()
    capfd.readouterr()
    assert run(["depth2img", "-i", "in.png", *PROMPT, *lost]) == 2
    assert "--depth" in capfd.readouterr().err


# --- upscale --------------------------------------------------------------------------------------


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
