"""The original's depth2img run, repeated with the parts: model, condition, sampler.

Its depth network was replaced by a recording, so what is compared is everything behind it.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from ldm.checkpoints.config import Config
from ldm.images.tensors import to_image_array
from ldm.models.conditioning import Conditioning
from ldm.models.depth import depth_concat, depth_image, estimate_depth
from ldm.models.model import Model
from ldm.models.registry import build
from ldm.sampling.samplers import final_latent, find_sampler, start_latent
from ldm.sampling.schedule import make_grid
from tests.golden_data import GOLDEN, case, tensors
from tests.golden_runs import OPEN_CLIP_TOWER, assert_image, assert_latents, v2_state
from tests.tiny_images import read

CASE = "e2e/v2-depth2img"
FOLDER = GOLDEN / CASE


class Recorded(nn.Module):
    """The depth that the run was made with, whatever the image."""

    def forward(self, images: Tensor) -> Tensor:
        raw = tensors("modules/depth-postprocess/inputs.safetensors")["raw_depth"]
        return raw[: len(images), None]


@pytest.fixture(scope="module")
def model() -> Model:
    tree = yaml.safe_load((FOLDER / "config.yaml").read_text(encoding="utf-8"))
    tower = json.loads(OPEN_CLIP_TOWER.read_text(encoding="utf-8"))
    tree["model"]["params"]["cond_stage_config"]["params"]["model_config"] = tower
    with torch.device("meta"):
        made = build(Config("v2-depth2img", tree))
    made.add_module("depth_model", Recorded())
    state = v2_state("unet-depth", "vae-kl-f8")
    buffers = {key: own for key, own in made.named_buffers() if not own.is_meta}
    made.load_state_dict({**buffers, **state}, assign=True)
    return made.to("cpu").requires_grad_(False).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    """The image, its last rows and columns repeated up to multiples of 64."""
    pixels = read(FOLDER / "image.png")
    height, width, _ = pixels.shape
    edges = ((0, -height % 64), (0, -width % 64), (0, 0))
    padded = np.pad(pixels, edges, mode="edge").astype(np.float32)
    return torch.from_numpy(padded / 127.5 - 1).permute(2, 0, 1)[None]


def test_the_depth_that_was_shown(model: Model, images: Tensor) -> None:
    depth = estimate_depth(model.get_submodule("depth_model"), images)
    assert_image(depth_image(depth[0])[2::4, 2::4], FOLDER / "depth.png")


def test_the_latents_and_the_image(model: Model, images: Tensor) -> None:
    params = case(f"{CASE}/case.json")["params"]
    golden = tensors(f"{CASE}/outputs.safetensors")
    generator = torch.Generator().manual_seed(params["seed"])
    shape = golden["latents_0"].shape
    # The posterior's draw comes first, then the noise; at eta 0 the rest is multiplied by 0.
    z = model.encode(images, torch.randn(shape, generator=generator))
    concat = depth_concat(
        estimate_depth(model.get_submodule("depth_model"), images), (shape[2], shape[3])
    )
    cond, uncond = (
        Conditioning(crossattn=model.condition([text])[0].crossattn, concat=concat)
        for text in (params["prompt"], "")
    )
    sampler = find_sampler("ddim")
    steps = params["steps"]
    kept = min(int(params["strength"] * steps), steps - 1)
    sigmas = make_grid("ddim", model.schedule, steps, "ldm")
    # The original noises to the level above the one where it begins to sample.
    above, sigmas = sigmas[steps - kept - 1].item(), sigmas[steps - kept :]
    noisy = model.schedule.noised(z, above, torch.randn(shape, generator=generator))
    x = start_latent(sampler, final_latent(sampler, noisy, above), sigmas[0].item())
    denoise = model.denoiser(cond, uncond, params["scale"])
    with torch.inference_mode():
        x = sampler.fn(denoise, x, sigmas)
    latent = final_latent(sampler, x, sigmas[-1].item())
    assert_latents(latent, golden["latents_0"])
    with torch.inference_mode():
        decoded = model.decode(latent)
    assert (decoded[..., ::4, ::4] - golden["decoded_first_strided"]).abs().max() <= 1e-3
    assert_image(to_image_array(decoded[0]), FOLDER / "result-0.png")
