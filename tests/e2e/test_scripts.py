"""The entry points in scripts/: the originals' command lines, with their defaults."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ldm.cli.app import main_script
from ldm.engine.results import Result
from ldm.images.texts import read_record
from ldm.jobs.legacy import SCRIPT_CHECKPOINTS
from ldm.models.model import Model
from ldm.sampling.noise import Noise
from ldm.sampling.samplers import final_latent, find_sampler, start_latent
from ldm.sampling.schedule import NoiseSchedule, make_grid
from tests.textless_models import free_tree
from tests.tiny_commands import error_of
from tests.tiny_images import place, textless_tree
from tests.tiny_models import make, state, write

ROOT = Path(__file__).parents[2]


def script(command: str, *words: str) -> int:
    """The exit code of a script."""
    with pytest.raises(SystemExit) as caught:
        main_script(command, list(words))
    assert isinstance(caught.value.code, int)
    return caught.value.code


def pixels(path: Path | str) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# --- sample_diffusion.py --------------------------------------------------------------------------


@pytest.fixture
def celeba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a tiny model as the originals kept it: config.yaml and model.ckpt."""
    folder = tmp_path / "models" / "ldm" / "celeba256"
    tree = free_tree()
    tree["model"]["params"]["image_size"] = 4
    folder.mkdir(parents=True)
    write(tree, folder / "config.yaml")
    torch.save({"state_dict": state(make(tree)), "global_step": 410000}, folder / "model.ckpt")
    monkeypatch.chdir(tmp_path)
    return folder


def planned(capfd: pytest.CaptureFixture[str], command: str, *words: str) -> dict[str, Any]:
    assert script(command, *words, "--print-config", "--json") == 0
    return {name: row["value"] for name, row in json.loads(capfd.readouterr().out).items()}


def test_so_many_samples_in_batches(celeba: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["-r", "models/ldm/celeba256", "-n", "5", "--batch_size=2", "-c", "2", "-e", "0.5"]
    assert script("sample_diffusion", *words, "--device", "cpu") == 0
    told = capfd.readouterr()
    assert "5 images in batches of 2 make 4, as in the original script" in told.err
    assert [path.name for path in sorted(celeba.rglob("*.png"))] == [
        f"0000{index}.png" for index in range(4)
    ]
    job = read_record(celeba / "samples" / "00003.png").job
    assert (job.task, job.eta, job.noise, job.steps) == ("sample", 0.5, "stream", 2)
    assert pixels(celeba / "samples" / "00003.png").shape == (16, 16, 3)


def test_the_defaults_of_sample_diffusion(celeba: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = planned(capfd, "sample_diffusion", "--resume", str(celeba / "model.ckpt"))
    wanted = {"steps": 50, "eta": 1.0, "n_samples": 10, "n_iter": 1, "seed": 42}
    wanted |= {"precision": "full", "schedule_compat": "ldm"}
    assert {name: told[name] for name in wanted} == wanted
    told = planned(capfd, "sample_diffusion", "-r", str(celeba), "-v", "-n", "3")
    wanted = {"steps": 1000, "eta": 1.0, "grid": "default", "n_samples": 3, "sampler": "ddim"}
    assert {name: told[name] for name in wanted} == wanted


def test_another_folder_and_changes_of_the_yaml(celeba: Path, tmp_path: Path) -> None:
    words = ["-r", str(celeba), "-n", "1", "-c", "1", "-l", "logs", "--device", "cpu"]
    assert script("sample_diffusion", *words, "model.params.scale_factor=0.5") == 0
    path = tmp_path / "logs" / "celeba256" / "samples" / "00000.png"
    assert read_record(path).job.overrides == ("model.params.scale_factor=0.5",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--resume is missing"),
        (["-r", "models/ldm/none"], "models/ldm/none: no such file"),
        (["-r", "models/ldm/celeba256", "cats"], "'cats' is neither a flag nor KEY=VALUE"),
        (["-r", "models/ldm/celeba256", "-n", "0"], "must be 1 or more"),
        (["-r", "models/ldm/celeba256", "-c", "many"], "--custom_steps must be a whole number"),
        (["-r", "models/ldm/celeba256", "--class", "3"], "has no classes"),
        (["-r", "models/ldm/celeba256", "model.params.scale_facto=1"], "scale_factor"),
    ],
)
def test_what_is_wrong_with_a_sampling_is_said(
    celeba: Path, capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert script("sample_diffusion", *words) == 2
    assert message in error_of(capfd)


class Recorded(Noise):
    """Noise of one generator, drawn in order."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def skip(self, draws: int, shape: tuple[int, ...]) -> None:
        for _ in range(draws):
            self.draw(shape)


def test_vanilla_sampling_is_ddpm() -> None:
    """Against the posterior of arXiv 2006.11239 (equations 6, 7) for data of deviation 2."""
    schedule = NoiseSchedule.from_betas("linear", linear_start=0.0015, linear_end=0.0195)
    sampler, sigmas = find_sampler("ddim"), make_grid("default", schedule, 1000)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        spread = sigma.view(-1, 1).double() ** 2
        return x * 4 / (4 + spread)

    noise = Recorded()
    x = start_latent(sampler, noise.draw((1, 8)), float(sigmas[0]))
    x = sampler.fn(denoise, x, sigmas, noise=noise, on_step=lambda *_: None, eta=1.0)
    ours = final_latent(sampler, x, float(sigmas[-1]))

    kept = schedule.alphas_cumprod.double()
    noise = Recorded()
    x = noise.draw((1, 8))
    for t in range(999, -1, -1):
        now, before = float(kept[t]), float(kept[t - 1]) if t else 1.0
        beta = 1 - now / before
        mean = denoise(x / math.sqrt(now), torch.tensor([math.sqrt((1 - now) / now)]))
        x = (
            math.sqrt(before) * beta / (1 - now) * mean
            + math.sqrt(1 - beta) * (1 - before) / (1 - now) * x
            + math.sqrt(beta * (1 - before) / (1 - now)) * noise.draw((1, 8))
        )
    assert (ours - x).abs().max() < 1e-3


# --- inpaint.py -----------------------------------------------------------------------------------


@pytest.fixture
def holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two images with masks, and the model where the script looks for it."""
    checkpoint = tmp_path / SCRIPT_CHECKPOINTS["inpaint"]
    checkpoint.parent.mkdir(parents=True)
    tree = textless_tree()
    write(tree, checkpoint.parent / "config.yaml")
    torch.save({"state_dict": state(make(tree))}, checkpoint)
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        image = rng.integers(0, 256, (64, 64, 3), np.uint8)
        mask = np.zeros((64, 64), np.uint8)
        mask[20:40, 10:50] = 255
        Image.fromarray(image).save(folder / f"{name}.png")
        Image.fromarray(mask).save(folder / f"{name}_mask.png")
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_folder_is_repainted_from_anywhere(holes: Path) -> None:
    """Run as a program, in a folder that has nothing of ldm in it."""
    (holes / "readme.png").write_bytes((holes / "a.png").read_bytes())
    words = [str(ROOT / "scripts/inpaint.py"), "--indir", "in", "--outdir", "out", "--steps", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *words, "--device", "cpu"],
        cwd=holes.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["out/a.png", "out/b.png"]
    assert "readme.png has no mask; skipped" in done.stderr
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "b.png"]
    for name in ("a.png", "b.png"):
        before, after = pixels(holes / name), pixels(f"out/{name}")
        changed = (before != after).any(axis=2)
        assert changed[20:40, 10:50].mean() > 0.9
        changed[20:40, 10:50] = False
        assert not changed.any()
    job = read_record(Path("out/b.png")).job
    assert (job.mask, job.feather, job.seed) == ("in/b_mask.png", 0, 42)


def test_an_image_is_drawn_at_its_own_size(holes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original padded nothing: its noise is that of the image's own latent."""
    shapes = []

    def decode(model: Model, z: Tensor, tiling: str = "auto") -> Tensor:
        shapes.append(tuple(z.shape[-2:]))
        return plain(model, z, tiling)

    plain = Model.decode
    monkeypatch.setattr(Model, "decode", decode)
    words = ["--indir", "in", "--outdir", "out", "--steps", "1", "--device", "cpu"]
    assert script("inpaint", *words) == 0
    first_stage = textless_tree()["model"]["params"]["first_stage_config"]["params"]["ddconfig"]
    side = 64 // 2 ** (len(first_stage["ch_mult"]) - 1)
    assert shapes == [(side, side)] * 2


def test_nothing_is_replaced_unasked(holes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/b.png").write_bytes(b"mine")
    words = ["--indir", "in", "--outdir", "out", "--steps", "1", "--device", "cpu"]
    assert script("inpaint", *words) == 2
    error = error_of(capfd)
    assert "out/b.png" in error
    assert "--overwrite" in error
    assert sorted(path.name for path in Path("out").iterdir()) == ["b.png"]
    assert script("inpaint", *words, "--overwrite") == 0
    assert pixels("out/b.png").shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--indir", "in", "--outdir", "in"], "--outdir in is --indir"),
        (["--indir", "in", "--outdir", "in", "--overwrite"], "--outdir in is --indir"),
        (["--indir", "none"], "--indir none: contains no mask X_mask.png"),
        (["--indir", "models"], "--indir models: contains no mask X_mask.png"),
        (["--indir", "in", "--mask", "m.png"], "omit --mask"),
        (["--indir", "in", "--n_samples", "2"], "one image and the job makes 2"),
        ([], "--init-img is missing"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(
    holes: Path, capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert script("inpaint", *words) == 2
    assert message in error_of(capfd)


def test_a_missing_checkpoint_is_said(holes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The bundled models take prompts, which inpaint.py has not: they are no stand-in for it."""
    Path(SCRIPT_CHECKPOINTS["inpaint"]).unlink()
    assert script("inpaint", "--indir", "in", "--outdir", "out") == 2
    error = error_of(capfd)
    assert f"{SCRIPT_CHECKPOINTS['inpaint']}: no such file" in error
    assert "--ckpt" in error
    assert not Path("out").exists()


def test_a_mask_without_its_image(holes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (holes / "b.png").unlink()
    assert script("inpaint", "--indir", "in", "--outdir", "out") == 2
    assert "b_mask.png has no b.png beside it" in error_of(capfd)
    assert not Path("out").exists()


# --- img2img.py -----------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a quick img2img run with a tiny model."""
    model = place("text", tmp_path / "models")
    y, x = np.mgrid[:70, :40].astype(np.uint8)
    Image.fromarray(np.stack([3 * y, 5 * x, x + y], axis=2)).save(tmp_path / "in.png")
    monkeypatch.chdir(tmp_path)
    quick = ["--ddim_steps", "3", "--ckpt", str(model), "--device", "cpu", "--n_samples", "1"]
    return ["--init-img", "in.png", *quick]


def test_every_flag_of_img2img(
    image: list[str], results: list[Result], capfd: pytest.CaptureFixture[str]
) -> None:
    Path("prompts.txt").write_text("a cat\na dog\n", encoding="utf-8")
    words = ["--prompt", "a red apple", "--n_iter", "1", "--strength", "0.5", "--scale", "4"]
    assert script("img2img", *image, *words, "--from-file", "prompts.txt") == 0
    unread = ["--fixed_code", "--C", "3", "--f", "16"]
    rest = ["--ddim_eta", "0.0", "--n_rows", "1", "--seed", "42", "--precision", "autocast"]
    rest += ["--skip_grid", "--skip_save", "--outdir", "o"]
    assert script("img2img", *image, *words, "--from-file=prompts.txt", *unread, *rest) == 0
    assert not Path("o").exists()
    told = capfd.readouterr().err
    for flag in ("--fixed_code", "--C", "--f"):
        assert f"{flag} does nothing, as in the original img2img.py" in told
    assert [result.prompt for result in results] == ["a cat", "a dog"] * 2
    assert torch.equal(results[1].latent, results[3].latent)
    assert results[0].image.shape == (64, 32, 3)
