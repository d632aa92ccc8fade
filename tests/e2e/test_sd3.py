"""Stable Diffusion 3 and 3.5 on the command line: the runs of sd3_infer.py, and what else is asked.

The prompts stand without parentheses, whose weights the original dropped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm.cli.app import run
from ldm.engine.results import Result
from ldm.images.texts import read_record
from tests.golden_data import tensors
from tests.golden_runs import E2E, assert_image, assert_latents, images_of
from tests.sd3_runs import with_parts_of, write_sd3, write_sd35
from tests.tiny_commands import error_of
from tests.tiny_images import read

FLAGS = ["--device", "cpu", "--rng", "cpu", "--skip_grid"]


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def sd35(sd3: Path) -> Path:
    return write_sd35(sd3.parent)


def size(width: int, height: int) -> list[str]:
    return ["--W", str(width), "--H", str(height)]


def generate(task: str, model: Path, out: Path, *words: str) -> None:
    assert run([task, "--model", str(model), "--outdir", str(out), *FLAGS, *words]) == 0


SD3_RUNS = {
    "sd3-txt2img-dpmpp2m": [
        *("--prompt", "a photo of a cat", "--steps", "6", "--scale", "5"),
        *("--sampler", "dpmpp_2m", "--seed", "23", *size(64, 48)),
    ],
    "sd3-txt2img-no-t5": [
        *("--prompt", "a castle on a hill at dusk", "--steps", "5", "--scale", "5"),
        *("--sampler", "euler", "--seed", "5", "--t5", "zeros", *size(64, 64)),
    ],
}
SD35_RUNS = {
    "sd35-txt2img-negative": [
        *("--prompt", "a castle on a hill at dusk", "--steps", "5", "--scale", "3.5"),
        *("--negative", "blurry, low quality, watermark", "--sampler", "dpmpp_2m"),
        *("--seed", "9", *size(48, 64)),
    ],
    "sd35-txt2img-skip-layers": [
        *("--prompt", 'the word "HELLO" written in sand', "--steps", "8", "--scale", "4.5"),
        *("--sampler", "euler", "--seed", "42", *size(80, 64), "--skip-layers", "1"),
        *("--skip-layer-scale", "2.5", "--skip-layer-start", "0.1", "--skip-layer-end", "0.75"),
    ],
    "sd35-txt2img-turbo": [
        *("--prompt", "an astronaut on a donkey", "--steps", "4", "--scale", "1"),
        *("--sampler", "euler", "--seed", "314", *size(64, 48)),
    ],
}


def assert_same(name: str, results: list[Result], out: Path) -> None:
    golden = tensors(f"e2e/{name}/outputs.safetensors")
    expected = torch.cat([golden[key] for key in sorted(golden)])  # as given to the decoder
    made = torch.stack([result.latent for result in results])
    assert_latents(made / 1.5305 + 0.0609, expected)
    for index, image in enumerate(images_of(name)):
        assert_image(read(out / "samples" / f"{index:05d}.png"), E2E / name / image)


@pytest.mark.parametrize("name", SD3_RUNS)
def test_sd3(name: str, sd3: Path, tmp_path: Path, results: list[Result]) -> None:
    generate("txt2img", sd3, tmp_path, *SD3_RUNS[name])
    assert_same(name, results, tmp_path)


@pytest.mark.parametrize("name", SD35_RUNS)
def test_sd35(name: str, sd3: Path, sd35: Path, tmp_path: Path, results: list[Result]) -> None:
    generate("txt2img", sd35, tmp_path, *with_parts_of(sd3), *SD35_RUNS[name])
    assert_same(name, results, tmp_path)


@pytest.mark.parametrize("noise", ["image", "stream"])
def test_each_image_has_the_next_seed(
    noise: str, sd3: Path, tmp_path: Path, results: list[Result]
) -> None:
    """The "roll" of sd3_infer.py: each image begins a stream of its own."""
    prompts = tmp_path / "prompts.txt"
    lines = ["a lighthouse in a storm, oil on canvas", "two red foxes under an old oak tree"]
    prompts.write_text("\n".join(lines), encoding="utf-8")
    words = ["--steps", "5", "--scale", "4", "--sampler", "euler", "--shift", "1"]
    words += ["--from-file", str(prompts), "--seed", "1000", "--noise", noise, *size(48, 80)]
    generate("txt2img", sd3, tmp_path, *words)
    assert_same("sd3-txt2img-euler-roll", results, tmp_path)


def test_img2img(sd3: Path, tmp_path: Path, results: list[Result]) -> None:
    name = "sd3-img2img"
    words = ["--prompt", "a bowl of fruit, pencil drawing", "--strength", "0.8", "--steps", "10"]
    words += ["--init-img", str(E2E / name / "init.png"), "--scale", "4.5", *size(64, 64)]
    words += ["--sampler", "dpmpp_2m", "--seed", "77"]
    words += ["--noise", "stream", "--schedule-compat", "ldm"]
    generate("img2img", sd3, tmp_path, *words)
    assert_same(name, results, tmp_path)


def test_an_image_does_not_depend_on_its_batch(
    sd3: Path, tmp_path: Path, results: list[Result]
) -> None:
    """With a sampler that adds noise, long prompts and weights; and its record repeats it."""
    words = ["--sampler", "euler_a", "--negative", "ugly", "--steps", "3", "--skip-layers", "0"]
    words += ["--skip-layer-end", "1", "--prompt", f"{'a cat, ' * 40} (red:1.3) hat"]
    generate("txt2img", sd3, tmp_path / "one", "--seed", "6", *words)
    generate("txt2img", sd3, tmp_path / "two", "--seed", "5", "--n_samples", "2", *words)
    alone, _, together = (result.latent for result in results)
    assert torch.allclose(alone, together, atol=2e-4)
    image = tmp_path / "one" / "samples" / "00000.png"
    assert run(["rerun", str(image), "--output", str(tmp_path / "again.png")]) == 0
    assert np.array_equal(read(tmp_path / "again.png"), read(image))


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "ddim", "heun"])
def test_inpainting_keeps_the_rest(sampler: str, sd3: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "in.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words = ["--init-img", str(tmp_path / "in.png"), "--mask", str(tmp_path / "mask.png")]
    words += ["--prompt", "a cat", "--sampler", sampler, "--steps", "3", "--feather", "0"]
    generate("inpaint", sd3, tmp_path / "out", *words)
    before, after = read(tmp_path / "in.png"), read(tmp_path / "out" / "samples" / "00000.png")
    assert np.array_equal(after[mask == 0], before[mask == 0])
    assert (after[mask > 0] != before[mask > 0]).mean() > 0.9


def test_sizes_that_do_not_divide_are_cropped(sd3: Path, tmp_path: Path) -> None:
    generate("txt2img", sd3, tmp_path, "--prompt", "a cat", *size(54, 37))
    image = tmp_path / "samples" / "00000.png"
    assert read(image).shape == (37, 54, 3)
    assert read_record(image).job.prediction == "flow"


def test_without_t5(
    sd3: Path,
    sd35: Path,
    tmp_path: Path,
    results: list[Result],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Zeros where there is no T5, said once; no tokens on request."""
    words = [*with_parts_of(sd3)[:-2], "--prompt", "a cat", "--seed", "1"]
    generate("txt2img", sd35, tmp_path / "a", *words, "--n_iter", "2")
    assert capfd.readouterr().err.count("zeros stand for it") == 1
    generate("txt2img", sd35, tmp_path / "b", *words, "--t5", "zeros")
    generate("txt2img", sd35, tmp_path / "c", *words, "--t5", "none")
    generate("txt2img", sd35, tmp_path / "d", *words, "--t5", str(sd3))
    assert "zeros stand" not in capfd.readouterr().err
    first, _, zeros, none, whole = (result.latent for result in results)
    assert torch.equal(first, zeros)
    assert not torch.allclose(zeros, none)
    assert not torch.allclose(zeros, whole)


BAD = {
    "--prediction eps": "--prediction eps: ",
    "--grid ddim": "--grid ddim is not for",
    "--skip-layers 2": "--skip-layers 2: this model has the layers 0 to 1",
    "--skip-layers 1 --guidance-rescale 0.5": "--guidance-rescale and --skip-layers exclude",
    "--skip-layers seven": "--skip-layers must be numbers of layers such as 7,8,9",
    "--skip-layer-scale 2": "--skip-layer-scale does nothing without --skip-layers",
    "--shift 0": "--shift must be a number above 0",
    "--W 512": "--width must be at most 192",
    "--t5 nowhere.safetensors": "--t5 nowhere.safetensors: no such file",
    "--t5 none --t5-length 77": "--t5-length does nothing with --t5 none",
}


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("words", BAD)
def test_bad_options(words: str, sd3: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["txt2img", "--model", str(sd3), "--prompt", "a cat", *words.split()]) == 2
    assert error_of(capfd).startswith(BAD[words])


@pytest.mark.usefixtures("unread")
def test_missing_and_wrong_parts(
    sd3: Path, sd35: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = load_file(sd3)
    t5 = {k: v for k, v in state.items() if "t5xxl" in k}
    other = tmp_path / "umt5.safetensors"
    table = "text_encoders.t5xxl.transformer.shared.weight"
    save_file({**t5, table: t5[table][:500].contiguous()}, other)
    vae, clip = with_parts_of(sd3)[:2], with_parts_of(sd3)[2:-2]
    lines = {
        "contains no autoencoder; give a file with --vae": clip,
        "contains no CLIP-L text encoder; give a file with --clip-l": vae,
        "is another text encoder: its table of tokens is 500x24": [
            *vae, *clip, "--t5", str(other)
        ],
        "contains no such text encoder": [*vae, *clip[:3], str(other)],
    }  # fmt: skip
    for line, words in lines.items():
        assert run(["txt2img", "--model", str(sd35), "--prompt", "a cat", *words]) == 2
        assert line in error_of(capfd)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    "flag", ["--shift 3", "--skip-layers 7", "--t5 none", "--grid flow", "--prediction flow"]
)
def test_options_of_flow_matching_on_another_model(
    flag: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["txt2img", "--prompt", "a cat", *flag.split()]) == 2
    assert "is for Stable Diffusion 3, not for" in error_of(capfd)
