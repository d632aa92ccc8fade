"""Images from images: the originals' img2img script, and the demos that had no command line.

The demos drew the first noise with numpy, which is `--rng numpy --noise stream` here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ldm.cli.app import main_script, run
from ldm.engine.results import Result
from ldm.images.texts import read_record
from ldm.models.targets import DEPTH_MODELS
from tests.golden_data import case, module, tensors, whole
from tests.golden_runs import (
    E2E,
    OPEN_CLIP_TOWER,
    assert_image,
    assert_results,
    images_of,
    v1_flags,
    v2_state,
    with_text_tower,
)
from tests.tiny_images import read

DEMO = ["--rng", "numpy", "--noise", "stream", "--schedule-compat", "ldm", "--device", "cpu"]


def v2_model(
    name: str,
    network: str,
    autoencoder: str,
    folder: Path,
    more: Mapping[str, torch.Tensor] | None = None,
) -> list[str]:
    """Flags for a model of v2's kind, put together from modules."""
    state = v2_state(network, autoencoder)
    save_file({**state, **(more or {})}, folder / "model.safetensors")
    yaml = E2E / name / "config.yaml"
    config = with_text_tower(yaml, folder / "model.yaml", "model_config", OPEN_CLIP_TOWER)
    return ["--config", str(config), "--model", str(folder / "model.safetensors")]


def assert_same(name: str, results: list[Result], out: Path, size: tuple[int, int]) -> None:
    """Latents within the tolerance, images within a level; `size` (w, h) is cut out of them."""
    assert_results(name, results)
    images = [image for image in images_of(name) if image != "depth.png"]
    samples = [image for image in images if not image.startswith("grid")]
    assert len(results) == len(samples)
    for index, image in enumerate(samples):
        made = read(out / "samples" / f"{index:05d}.png")
        assert made.shape[:2] == size[::-1]
        assert_image(made, E2E / name / image, size)


def exit_code(command: str, argv: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main_script(command, argv)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def params(name: str) -> dict[str, Any]:
    found: dict[str, Any] = case(f"e2e/{name}/case.json")["params"]
    return found


def demo_flags(name: str) -> list[str]:
    """The settings of a demo's recorded run, as flags."""
    told = params(name)
    names = {"prompt": "--prompt", "ddim_steps": "--steps", "steps": "--steps", "scale": "--scale"}
    names |= {"num_samples": "--n_samples", "seed": "--seed", "eta": "--eta"}
    names |= {"strength": "--strength", "noise_level": "--noise-level"}
    pairs = [(names[key], str(value)) for key, value in told.items() if key in names]
    return [word for pair in pairs for word in pair]


def test_img2img_of_version_one(tmp_path: Path, results: list[Result]) -> None:
    name = "v1-img2img"
    recorded: list[str] = case(f"e2e/{name}/case.json")["cli"]
    words = [str(E2E / name / word) if word == "init.png" else word for word in recorded]
    model = [*v1_flags(tmp_path), "--device", "cpu"]
    assert exit_code("img2img", [*words, *model, "--outdir", str(tmp_path / "out")]) == 0
    assert_same(name, results, tmp_path / "out", (64, 32))
    assert_image(read(tmp_path / "out" / "grid-0000.png"), E2E / name / "grid-0000.png")
    image = tmp_path / "out" / "samples" / "00003.png"
    assert run(["rerun", str(image), "-o", str(tmp_path / "again.png")]) == 0
    assert (tmp_path / "again.png").read_bytes() == image.read_bytes()


def test_inpainting_of_version_two(tmp_path: Path, results: list[Result]) -> None:
    name = "v2-inpaint"
    model = v2_model(name, "unet-inpaint", "vae-kl-f8", tmp_path)
    files = ["-i", str(E2E / name / "image.png"), "--mask", str(E2E / name / "mask.png")]
    out = tmp_path / "out"
    argv = [*files, *demo_flags(name), *model, *DEMO, "--no-paste", "--outdir", str(out)]
    assert run(["inpaint", *argv]) == 0
    assert_same(name, results, out, (120, 100))


def test_upscaling(tmp_path: Path, results: list[Result]) -> None:
    name = "x4-superresolution"
    model = v2_model(name, "unet-upscale", "vae-kl-f4", tmp_path)
    out = tmp_path / "out"
    argv = ["-i", str(E2E / name / "image.png"), *demo_flags(name), *model, *DEMO]
    assert run(["upscale", *argv, "--outdir", str(out)]) == 0
    assert_same(name, results, out, (96, 64))


class Recorded(torch.nn.Module):
    """A depth network that gives one answer, its only tensor [1,H,W]."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.raw = torch.nn.Parameter(torch.empty(1, *size))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.raw[: len(images), None]


def test_depth_of_version_two(
    tmp_path: Path, results: list[Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The depth network's answer is recorded, not its weights."""
    name = "v2-depth2img"
    raw = tensors("modules/depth-postprocess/inputs.safetensors")["raw_depth"][:1]
    model = v2_model(name, "unet-depth", "vae-kl-f8", tmp_path, {"depth_model.raw": raw})
    height, width = raw.shape[1:]
    target = "ldm.modules.midas.api.MiDaSInference"
    spec = replace(DEPTH_MODELS[target], build=lambda *_: Recorded((height, width)))
    monkeypatch.setitem(DEPTH_MODELS, target, spec)
    out = tmp_path / "out"
    argv = ["-i", str(E2E / name / "image.png"), *demo_flags(name), *model, *DEMO]
    argv += ["--rng", "cpu"]  # it began with the image
    assert run(["depth2img", *argv, "--outdir", str(out)]) == 0
    assert_same(name, results, out, (100, 120))


def test_classes(tmp_path: Path, results: list[Result]) -> None:
    name = "cin-class-conditional"
    told = case(f"e2e/{name}/case.json")
    state = whole({"": module("unet-class"), "first_stage_model.": module("vq-f4")})
    save_file(state, tmp_path / "m.safetensors")
    out = tmp_path / "out"
    argv = ["--config", str(E2E / name / "config.yaml"), "-m", str(tmp_path / "m.safetensors")]
    argv += [word for number in told["classes"] for word in ("--class", str(number))]
    argv += ["--n_samples", "2", "--steps", "5", "--scale", "3", "--seed", "42", "--H", "32"]
    argv += ["--W", "48", "--eta", "0", "--outdir", str(out), "--device", "cpu"]
    argv += ["--rng", "cpu", "--noise", "stream", "--schedule-compat", "ldm"]
    assert run(["sample", *argv]) == 0
    assert_same(name, results, out, (48, 32))
    image = out / "samples" / "00003.png"
    assert read_record(image).job.classes == ("7",)
