"""SDXL's options: each changes what it is for, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import save_file

from ldm.cli.app import run
from ldm.engine.results import Result
from ldm.images.texts import read_record
from tests.tiny_images import read, save, scene, square_mask
from tests.tiny_sdxl import base_state, place_models, sdxl_tree

QUICK = ["--device", "cpu", "--steps", "2", "--seed", "5", "-q"]
SIZE = ["--W", "64", "--H", "64"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny models, an image and its mask."""
    folder = tmp_path_factory.mktemp("sdxl")
    place_models(folder)
    tree = sdxl_tree()
    tree["model"]["params"]["network_config"]["params"]["in_channels"] = 9
    (folder / "inpaint.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    state = base_state()
    key = "model.diffusion_model.input_blocks.0.0.weight"
    generator = torch.Generator().manual_seed(0)
    more = torch.randn((len(state[key]), 5, 3, 3), generator=generator) * 0.2
    save_file({**state, key: torch.cat([state[key], more], dim=1)}, folder / "inpaint.safetensors")
    save(folder / "in.png", scene(64, 64))
    save(folder / "mask.png", square_mask(64, 64))
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def image(folder: Path, *argv: str, model: str = "sdxl", task: str = "txt2img") -> NDArray[np.int_]:
    sized = SIZE if task == "txt2img" else []
    words = [task, "--model", str(folder / f"{model}.safetensors"), *QUICK, *sized, *argv]
    assert run([*words, "-o", "out.png", "--overwrite"]) == 0
    return read(Path("out.png")).astype(int)


def refused(folder: Path, *argv: str, model: str = "sdxl", task: str = "txt2img") -> int:
    return run([task, "--model", str(folder / f"{model}.safetensors"), "--dry_run", *QUICK, *argv])


def test_each_option_changes_the_image(folder: Path) -> None:
    prompt = ["--prompt", "a cat", "--negative", "words"]
    plain = image(folder, *prompt)
    assert np.array_equal(plain, image(folder, *prompt, "--original-size", "64x64"))
    for words in (
        ["--prompt-2", "two dogs"],
        ["--negative-2", "two dogs"],
        ["--original-size", "512x512"],
        ["--crop", "0,64"],
        ["--target-size", "1024x512"],
        ["--clip-skip", "1"],
    ):
        assert not np.array_equal(plain, image(folder, *prompt, *words)), words
    assert np.array_equal(plain, image(folder, *prompt, "--clip-skip", "2"))


def test_an_empty_negative_prompt_is_zeros(folder: Path) -> None:
    usual = image(folder, "--prompt", "a cat")
    record = read_record(Path("out.png"))
    assert record.job.unconditional == "zeros"
    assert np.array_equal(usual, image(folder, "--prompt", "a cat", "--unconditional", "zeros"))
    encoded = image(folder, "--prompt", "a cat", "--unconditional", "encoded")
    assert not np.array_equal(usual, encoded)
    assert run(["rerun", "out.png", "-o", "again.png"]) == 0
    assert np.array_equal(read(Path("again.png")), encoded)


def test_the_refiners_scores(folder: Path) -> None:
    argv = ["--prompt", "a cat", "--init-img", str(folder / "in.png"), "--strength", "0.9"]
    plain = image(folder, *argv, model="refiner", task="img2img")
    assert read_record(Path("out.png")).job.unconditional == "encoded"
    for words in (["--aesthetic-score", "9"], ["--negative-aesthetic-score", "5"]):
        changed = image(folder, *argv, *words, model="refiner", task="img2img")
        assert not np.array_equal(plain, changed)


@pytest.mark.parametrize("model", ["sdxl", "inpaint"])
def test_inpainting(model: str, folder: Path) -> None:
    """By a network that is shown the mask, and by any other."""
    argv = ["--init-img", str(folder / "in.png"), "--mask", str(folder / "mask.png")]
    made = image(folder, *argv, "--prompt", "a cat", model=model, task="inpaint")
    source, masked = scene(64, 64).astype(int), square_mask(64, 64) > 127
    assert np.array_equal(made[~masked], source[~masked])
    assert not np.array_equal(made[masked], source[masked])


def test_jobs_of_a_batch_do_not_see_each_other(folder: Path, results: list[Result]) -> None:
    """Other prompts, second prompts and sizes, sampled together, are as each alone."""
    lines = [
        '{"prompt": "a cat", "prompt_2": "two dogs", "original_size": "512x512", "seed": 1}',
        '{"prompt": "a red cube", "negative": "words", "crop": "0,64", "seed": 2}',
        '{"prompt": "many castles", "seed": 3}',
    ]
    model = ["--model", str(folder / "sdxl.safetensors"), *QUICK, *SIZE]
    for name, chosen in (("all", lines), *((str(n), [line]) for n, line in enumerate(lines))):
        Path(f"{name}.jsonl").write_text("\n".join(chosen), encoding="utf-8")
        words = ["--from-file", f"{name}.jsonl", "--outdir", name, "--batch-size", "3"]
        assert run(["txt2img", *model, *words]) == 0
    together, alone = results[:3], results[3:]
    for one, other in zip(together, alone, strict=True):
        # Together the network's products are rounded otherwise.
        assert float((one.latent - other.latent).abs().max()) < 1e-3


def test_hires_fix_is_conditioned_on_its_own_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldm.engine import guides

    seen: list[tuple[int, int]] = []
    numbers_of = guides.numbers_of
    monkeypatch.setattr(
        guides, "numbers_of", lambda job, size: (seen.append(size), numbers_of(job, size))[1]
    )
    image(folder, "--prompt", "a cat", "--hires", "2")
    assert seen == [(64, 64), (128, 128)]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--aesthetic-score", "7"], "--aesthetic-score is for the refiner of SDXL"),
        (["--prompt-2", "a AND b"], "--prompt-2 cannot contain AND"),
        (["--unconditional", "zeros", "--negative", "x"], "leaves no room"),
    ],
)
@pytest.mark.usefixtures("unread")
def test_what_does_not_fit(
    argv: list[str], message: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert refused(folder, "--prompt", "a cat", *argv) == 2
    assert message in capfd.readouterr().err


@pytest.mark.usefixtures("unread")
def test_the_refiner_alone_needs_an_image(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert refused(folder, "--prompt", "a cat", model="refiner") == 2
    assert "refiner only refines an image" in capfd.readouterr().err


@pytest.mark.usefixtures("unread")
def test_other_models_do_not_take_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for flag, value in (("--crop", "0,0"), ("--prompt-2", "x"), ("--unconditional", "zeros")):
        assert run(["txt2img", "--model", "emoji-128", "--prompt", "a", flag, value]) == 2
        assert flag in capfd.readouterr().err


def test_its_sizes_and_autoencoders() -> None:
    from dataclasses import replace

    from ldm.checkpoints.config import read_config
    from ldm.checkpoints.families import FAMILIES, yaml_of
    from ldm.checkpoints.families.choice import Choice
    from ldm.engine.advice import notes_about
    from ldm.jobs.job import Job

    family = FAMILIES["sdxl"]
    choice = Choice(read_config(yaml_of(family)), family, "", "")
    good = Job(prompt="x", width=1216, height=832)
    assert notes_about(good, choice) == []
    assert (
        "832x1216 will look better" in notes_about(replace(good, width=350, height=512), choice)[0]
    )
    sd_vae = replace(good, vae="vae-ft-mse-840000-ema-pruned.safetensors")
    assert "wrong for SDXL" in notes_about(sd_vae, choice)[0]
    assert notes_about(replace(good, vae="sdxl_vae-fp16-fix.safetensors"), choice) == []
    assert family.defaults.scale == 7.0
    assert FAMILIES["sdxl-refiner"].defaults.scale == 5.0
