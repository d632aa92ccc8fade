"""Pictures from pictures: the originals' img2img script, and the demos that had no command line.

The golden runs were made on a CPU in float32. The demos drew the first noise with numpy, which is
`--rng numpy --noise stream` here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from golden_data import GOLDEN, case, tensors
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from ldm.cli import main_script, run
from ldm.metadata import read_record
from ldm.results import Result
from ldm.targets import DEPTH_MODELS

E2E = GOLDEN / "e2e"
# Round-off of other kernels and another order of sums, grown by a few steps of random networks.
LATENT_TOLERANCE = 1e-3
DEMO = ["--rng", "numpy", "--noise", "stream", "--schedule-compat", "ldm", "--device", "cpu"]


def read(path: Path) -> NDArray[np.int16]:
    with Image.open(path) as image:
        return np.asarray(image).astype(np.int16)


def config_of(name: str, folder: Path, key: str, tower: Path) -> Path:
    """The YAML of a case with the sizes of its tiny text encoder written in."""
    tree = yaml.safe_load((E2E / name / "config.yaml").read_text(encoding="utf-8"))
    stage = tree["model"]["params"]["cond_stage_config"]
    stage.setdefault("params", {})[key] = json.loads(tower.read_text(encoding="utf-8"))
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def module(name: str) -> dict[str, torch.Tensor]:
    """The weights of a module's case, on top of the ones that it builds on."""
    base = case(f"modules/{name}/case.json").get("weights_base")
    below = module(base) if base else {}
    return {**below, **tensors(f"modules/{name}/weights.safetensors")}


def v2_model(
    name: str,
    network: str,
    autoencoder: str,
    folder: Path,
    more: Mapping[str, torch.Tensor] | None = None,
) -> list[str]:
    """Flags for a model of v2's kind, put together from modules."""
    state = {
        prefix + key: value.contiguous()
        for prefix, part in (
            ("model.diffusion_model.", network),
            ("first_stage_model.", autoencoder),
            ("cond_stage_model.", "text-openclip-v2"),
        )
        for key, value in module(part).items()
    }
    rows = tensors("modules/text-openclip-v2/token_rows.safetensors")
    ids = rows.pop("__ids__").long()
    for key, values in rows.items():
        table = torch.zeros(49408, values.shape[1])
        table[ids] = values.float()
        state[f"cond_stage_model.{key}"] = table
    save_file({**state, **(more or {})}, folder / "model.safetensors")
    tower = GOLDEN / "modules/text-openclip-v2/open_clip_config.json"
    config = config_of(name, folder, "model_config", tower)
    return ["--config", str(config), "--model", str(folder / "model.safetensors")]


def assert_same(name: str, results: list[Result], out: Path, size: tuple[int, int]) -> None:
    """Latents within the tolerance, pictures within a level; `size` (w, h) is cut out of them."""
    golden = tensors(f"e2e/{name}/outputs.safetensors")
    latents = [golden[key] for key in sorted(golden) if key.startswith("latents_")]
    expected = torch.cat(latents)
    ours = torch.stack([result.latent for result in results])
    scale = max(1.0, float(expected.std()))
    assert float((ours - expected).abs().max()) <= LATENT_TOLERANCE * scale
    images = [image for image in case(f"e2e/{name}/case.json")["images"] if image != "depth.png"]
    samples = [image for image in images if not image.startswith("grid")]
    assert len(results) == len(samples)
    for index, image in enumerate(samples):
        made = read(out / "samples" / f"{index:05d}.png")
        assert made.shape[:2] == size[::-1]
        assert np.abs(made - read(E2E / name / image)[: size[1], : size[0]]).max() <= 1


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
    name, tiny = "v1-img2img", E2E / "sd-v1-tiny"
    tree = yaml.safe_load((tiny / "config.yaml").read_text(encoding="utf-8"))
    stage = tree["model"]["params"]["cond_stage_config"]
    tower = json.loads((tiny / "text_config.json").read_text(encoding="utf-8"))
    stage.setdefault("params", {})["text_config"] = tower
    config = tmp_path / "v1.yaml"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    recorded: list[str] = case(f"e2e/{name}/case.json")["cli"]
    words = [str(E2E / name / word) if word == "init.png" else word for word in recorded]
    model = ["--config", str(config), "--ckpt", str(tiny / "model.ckpt"), "--device", "cpu"]
    assert exit_code("img2img", [*words, *model, "--outdir", str(tmp_path / "out")]) == 0
    assert_same(name, results, tmp_path / "out", (64, 32))
    grid = read(tmp_path / "out" / "grid-0000.png")
    assert np.abs(grid - read(E2E / name / "grid-0000.png")).max() <= 1
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
    argv += ["--rng", "cpu"]  # it began with the picture
    assert run(["depth2img", *argv, "--outdir", str(out)]) == 0
    assert_same(name, results, out, (100, 120))


def test_classes(tmp_path: Path, results: list[Result]) -> None:
    name = "cin-class-conditional"
    told = case(f"e2e/{name}/case.json")
    state = dict(module("unet-class"))
    for key, value in module("vq-f4").items():
        state[f"first_stage_model.{key}"] = value
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "m.safetensors")
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
