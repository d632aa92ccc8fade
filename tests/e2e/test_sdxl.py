"""SDXL: the runs of generative-models, repeated through the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from ldm.cli.app import run
from ldm.engine.results import Result
from tests.golden_data import GOLDEN, case, module, tensors, text_tower, whole
from tests.golden_runs import E2E, assert_image, assert_latents, images_of
from tests.tiny_images import read
from tests.tiny_sdxl import place_models, sized

SGM = ["--schedule-compat", "sgm", "--noise", "stream", "--rng", "cpu", "--prompt-syntax", "plain"]
SAMPLERS = {
    "EulerEDMSampler": "euler",
    "HeunEDMSampler": "heun",
    "DPMPP2MSampler": "dpmpp_2m",
    "EulerAncestralSampler": "euler_ancestral",
    "DPMPP2SAncestralSampler": "dpmpp_2s_ancestral",
}
TXT2IMG = [
    "sdxl-base-txt2img",
    "sdxl-base-txt2img-ancestral",
    "sdxl-base-txt2img-churn",
    "sdxl-base-txt2img-dpmpp-2m",
    "sdxl-base-txt2img-dpmpp-2s",
    "sdxl-base-txt2img-zero-uncond",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base and the refiner, and with SD-Turbo."""
    folder = tmp_path_factory.mktemp("sdxl")
    place_models(folder)
    turbo = {
        "model.diffusion_model.": module("unet-v2"),
        "first_stage_model.": module("vae-kl-f8"),
        "conditioner.embedders.0.": text_tower("text-openclip-v2"),
    }
    save_file(whole(turbo), folder / "sd-turbo.safetensors")
    tree = yaml.safe_load((E2E / "sd-turbo/config.yaml").read_text(encoding="utf-8"))
    towers = GOLDEN / "modules/text-openclip-v2"
    (folder / "sd-turbo.yaml").write_text(yaml.safe_dump(sized(tree, towers)), encoding="utf-8")
    return folder


def size(pair: list[int]) -> str:
    """(height, width) as WIDTHxHEIGHT."""
    return f"{pair[1]}x{pair[0]}"


def flags(params: Mapping[str, Any]) -> list[str]:
    """The flags of a recorded run, but for its model."""
    found = ["--prompt", params["prompt"], "--negative", params.get("negative_prompt", "")]
    found += ["--seed", params["seed"], "--n_samples", params["num_samples"]]
    found += ["--scale", params["scale"], "--sampler", SAMPLERS[params["sampler"]]]
    for name, flag in (("steps", "--steps"), ("strength", "--strength")):
        found += [flag, params[name]] if name in params else []
    for name, flag in (("H", "--H"), ("W", "--W")):
        found += [flag, params[name]] if name in params else []
    for name in ("s_churn", "s_tmin", "s_tmax", "s_noise"):
        found += [f"--{name.replace('_', '-')}", params[name]] if name in params else []
    if "original_size" in params:
        top, left = params["crop_coords_top_left"]
        found += ["--original-size", size(params["original_size"]), "--crop", f"{left},{top}"]
    if "target_size" in params:
        found += ["--target-size", size(params["target_size"])]
    return [*map(str, found), *SGM, "--device", "cpu", "-q"]


def assert_run(name: str, out: Path, results: list[Result], prefix: str = "") -> None:
    """Fail where latents or images are not those of a recorded run."""
    golden = tensors(f"e2e/{name}/outputs.safetensors")
    latents = [golden[key] for key in sorted(golden) if key.startswith(f"{prefix}latents_")]
    assert_latents(torch.stack([result.latent for result in results]), torch.cat(latents))
    made = sorted(out.glob("**/*.png"))
    for path, image in zip(made, images_of(name), strict=True):
        assert_image(read(path), E2E / name / image)


@pytest.mark.parametrize("name", TXT2IMG)
def test_txt2img(name: str, models: Path, tmp_path: Path, results: list[Result]) -> None:
    argv = flags(case(f"e2e/{name}/case.json")["params"])
    model = ["--model", str(models / "sdxl.safetensors")]
    assert run(["txt2img", *argv, *model, "--outdir", str(tmp_path), "--skip_grid"]) == 0
    assert_run(name, tmp_path, results)


@pytest.mark.parametrize("name", ["sdxl-base-img2img", "sdxl-refiner-img2img"])
def test_img2img(name: str, models: Path, tmp_path: Path, results: list[Result]) -> None:
    argv = flags(case(f"e2e/{name}/case.json")["params"])
    file = "refiner.safetensors" if "refiner" in name else "sdxl.safetensors"
    argv += ["--model", str(models / file), "--init-img", str(E2E / name / "init.png")]
    argv += ["--fit", "floor-64"]
    assert run(["img2img", *argv, "--outdir", str(tmp_path), "--skip_grid"]) == 0
    assert_run(name, tmp_path, results)


@pytest.mark.parametrize(
    ("name", "steps"), [("sdxl", 1), ("sdxl", 2), ("sdxl", 4), ("sd", 1), ("sd", 3)]
)
def test_turbo(name: str, steps: int, models: Path, tmp_path: Path, results: list[Result]) -> None:
    params = dict(case(f"e2e/{name}-turbo/case.json")["params"], sampler="EulerAncestralSampler")
    argv = [*flags({**params, "steps": steps}), "--rng", "numpy", "--grid", "turbo"]
    file = "sdxl" if name == "sdxl" else "sd-turbo"
    out = tmp_path / "out.png"
    argv += ["--model", str(models / f"{file}.safetensors"), "-o", str(out)]
    assert run(["txt2img", *argv]) == 0
    golden = tensors(f"e2e/{name}-turbo/outputs.safetensors")
    assert_latents(results[0].latent[None], golden[f"steps{steps}.latents_0"])
    assert_image(read(out), E2E / f"{name}-turbo" / f"steps{steps}-0.png")
