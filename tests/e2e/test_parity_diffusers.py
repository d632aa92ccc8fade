"""The same latents as diffusers from the same weights and the same noise.

A tiny v1 and a tiny v2 model with random weights are made from YAML. diffusers' own single-file
conversion reads that YAML and those keys, so names, shapes and meanings are all compared with what
it expects of published checkpoints. Text goes through transformers' CLIPTextModel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from diffusers.loaders import single_file_utils
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.checkpoints.config import parse_config
from ldm.models.model import Model
from ldm.models.registry import build
from ldm.sampling.denoiser import Prediction
from ldm.sampling.samplers import SAMPLERS, final_latent, start_latent
from ldm.sampling.schedule import make_grid

# diffusers hands tensors to numpy in a way that numpy 2 wants written otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = 10
SCALE = 7.5
PROMPTS = ["a red apple on a blue background", "Fog over Mt. Fuji, 4k"]
# Both sides compute in float32, in another order; seen are 2e-4 where latents have a std of 20.
TOLERANCE = 1e-3

SHARED = """
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    timesteps: 1000
    linear_start: 0.00085
    linear_end: 0.012
    scale_factor: 0.18215
    conditioning_key: crossattn
    parameterization: {prediction}
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: 64
          in_channels: 3
          out_ch: 3
          ch: 32
          ch_mult: [1, 2]
          num_res_blocks: 2
          attn_resolutions: []
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        in_channels: 4
        out_channels: 4
        model_channels: 32
        channel_mult: [1, 2, 2]
        num_res_blocks: 2
        attention_resolutions: [2, 1]
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: 32
        legacy: false
"""
V1 = """
        num_heads: 4
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        text_config:
          hidden_size: 32
          intermediate_size: 64
          num_hidden_layers: 3
          num_attention_heads: 4
"""
V2 = """
        num_head_channels: 16
        use_linear_in_transformer: true
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder
      params:
        layer: penultimate
        model_config:
          embed_dim: 32
          text_cfg:
            context_length: 77
            vocab_size: 49408
            width: 32
            heads: 4
            layers: 3
"""
MODELS = {
    "v1": ("eps", SHARED.format(prediction="eps") + V1),
    "v2": ("eps", SHARED.format(prediction="eps") + V2),
    "v2-v": ("v", SHARED.format(prediction="v") + V2),
}


@dataclass
class Pair:
    """One set of weights in two libraries."""

    name: str
    ours: Model
    unet: UNet2DConditionModel
    autoencoder: AutoencoderKL
    text: CLIPTextModel
    prediction_type: str


def random_weights(model: Model) -> dict[str, Tensor]:
    """Weights that keep activations of order 1, no layer left at zero."""
    generator = torch.Generator().manual_seed(7)
    weights = {}
    for key, tensor in model.state_dict().items():
        if not tensor.is_meta:  # the schedule's buffers
            weights[key] = tensor
        elif not tensor.is_floating_point():  # position_ids
            weights[key] = torch.arange(tensor.numel()).reshape(tensor.shape)
        else:
            drawn = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim < 2:
                weights[key] = 0.1 * drawn + (1.0 if key.endswith("weight") else 0.0)
            else:
                weights[key] = drawn / tensor[0].numel() ** 0.5
    return weights


def their_text_model(name: str, weights: dict[str, Tensor]) -> CLIPTextModel:
    """transformers' text model: of the layers used alone, hence one fewer for v2."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    if name == "v1":
        sizes |= {"intermediate_size": 64, "num_hidden_layers": 3}
        model = CLIPTextModel(CLIPTextConfig(**sizes, hidden_act="quick_gelu", vocab_size=49408))
        converted = single_file_utils.convert_ldm_clip_checkpoint(weights)
    else:
        sizes |= {"intermediate_size": 128, "num_hidden_layers": 2}
        model = CLIPTextModel(CLIPTextConfig(**sizes, hidden_act="gelu", vocab_size=49408))
        converted = single_file_utils.convert_open_clip_checkpoint(model, weights)
    known = set(model.state_dict())
    if not any(key.startswith("text_model.") for key in known):  # flat since transformers 5.6
        converted = {key.removeprefix("text_model."): value for key, value in converted.items()}
    assert known <= set(converted) | {"embeddings.position_ids"}
    model.load_state_dict({key: converted[key] for key in known}, strict=True)
    return model.eval()


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest) -> Pair:
    name = request.param
    config = parse_config(MODELS[name][1], f"{name}.yaml")
    with torch.device("meta"):
        ours = build(config)
    weights = random_weights(ours)
    ours.load_state_dict(weights, strict=True, assign=True)
    ours.eval().requires_grad_(False)

    unet_config = single_file_utils.create_unet_diffusers_config_from_ldm(config.tree, weights)
    unet = UNet2DConditionModel.from_config(unet_config)
    unet.load_state_dict(single_file_utils.convert_ldm_unet_checkpoint(weights, unet_config))
    vae_config = single_file_utils.create_vae_diffusers_config_from_ldm(config.tree, weights)
    autoencoder = AutoencoderKL.from_config(vae_config)
    autoencoder.load_state_dict(single_file_utils.convert_ldm_vae_checkpoint(weights, vae_config))
    prediction_type = {Prediction.EPS: "epsilon", Prediction.V: "v_prediction"}[ours.prediction]
    text = their_text_model(name, weights)
    return Pair(name, ours, unet.eval(), autoencoder.eval(), text, prediction_type)


def their_hidden(pair: Pair, texts: list[str]) -> Tensor:
    """[B,77,D] of the last layer that is used, by transformers, from our tokens.

    The tokenizers of the published diffusers models pad with the end token (v1) and with 0 (v2).
    """
    embedder: Any = pair.ours.cond_stage_model
    pad = 49407 if pair.name == "v1" else 0
    ids = torch.tensor(embedder.tokenizer.batch(texts, pad)[0])
    hidden: Tensor = pair.text(ids).last_hidden_state
    return hidden


def their_latents(pair: Pair, scheduler: Any, noise: Tensor) -> Tensor:
    context = their_hidden(pair, ["", "", *PROMPTS])
    x = noise * scheduler.init_noise_sigma
    as_eps = scheduler.config.prediction_type == "epsilon" != pair.prediction_type
    for t in scheduler.timesteps:
        x_in = scheduler.scale_model_input(torch.cat([x, x]), t)
        out = pair.unet(x_in, t, encoder_hidden_states=context).sample
        if as_eps:
            ac = scheduler.alphas_cumprod[t]
            out = ac.sqrt() * out + (1 - ac).sqrt() * x_in
        uncond, cond = out.chunk(2)
        x = scheduler.step(uncond + SCALE * (cond - uncond), t, x).prev_sample
    return x


def our_latents(pair: Pair, name: str, sigmas: Tensor, noise: Tensor) -> Tensor:
    sampler = SAMPLERS[name]
    cond, _ = pair.ours.condition(PROMPTS)
    uncond, _ = pair.ours.condition([""] * len(PROMPTS))
    denoise = pair.ours.denoiser(cond, uncond, SCALE)
    x = sampler.fn(denoise, start_latent(sampler, noise, float(sigmas[0])), sigmas)
    return final_latent(sampler, x, float(sigmas[-1]))


TRAINED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
AS_PUBLISHED = {"steps_offset": 1, "set_alpha_to_one": False}

# Our sampler, our grid (None: diffusers' own levels, where it rounds timesteps), diffusers' class.
CASES: dict[str, tuple[str, str | None, Callable[..., Any], dict[str, Any]]] = {
    "ddim": ("ddim", "ddim", DDIMScheduler, AS_PUBLISHED | {"clip_sample": False}),
    "plms": ("plms", "ddim", PNDMScheduler, AS_PUBLISHED | {"skip_prk_steps": True}),
    "euler-karras": ("euler", "karras", EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    "heun-karras": ("heun", "karras", HeunDiscreteScheduler, {"use_karras_sigmas": True}),
    "dpm_solver": (
        "dpm_solver",
        None,
        DPMSolverMultistepScheduler,
        {"final_sigmas_type": "sigma_min"},
    ),
}


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_the_same_latents(pair: Pair, case: str) -> None:
    name, grid, make, options = CASES[case]
    # PLMS extrapolates eps; diffusers' would extrapolate v, so it is given eps.
    prediction_type = "epsilon" if case == "plms" else pair.prediction_type
    scheduler = make(**TRAINED, **options, prediction_type=prediction_type)
    scheduler.set_timesteps(STEPS)
    sigmas = make_grid(grid, pair.ours.schedule, STEPS) if grid else scheduler.sigmas
    noise = torch.randn(len(PROMPTS), 4, 8, 8, generator=torch.Generator().manual_seed(1))
    theirs = their_latents(pair, scheduler, noise)
    ours = our_latents(pair, name, sigmas, noise)
    difference = (ours - theirs).abs().max()
    assert difference < TOLERANCE


@pytest.mark.parametrize("size", [(7, 8), (8, 9), (5, 11)])
@torch.inference_mode()
def test_the_same_latents_of_odd_sizes(pair: Pair, size: tuple[int, int]) -> None:
    """Maps that do not halve evenly; at 8 pixels per position, images of 56x64 and so on."""
    name, grid, make, options = CASES["ddim"]
    scheduler = make(**TRAINED, **options, prediction_type=pair.prediction_type)
    scheduler.set_timesteps(STEPS)
    sigmas = make_grid(grid, pair.ours.schedule, STEPS)
    noise = torch.randn(len(PROMPTS), 4, *size, generator=torch.Generator().manual_seed(1))
    theirs = their_latents(pair, scheduler, noise)
    assert (our_latents(pair, name, sigmas, noise) - theirs).abs().max() < TOLERANCE


@torch.inference_mode()
def test_the_same_embedding(pair: Pair) -> None:
    cond, _ = pair.ours.condition(PROMPTS)
    torch.testing.assert_close(cond.crossattn, their_hidden(pair, PROMPTS), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_the_same_images(pair: Pair) -> None:
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(2, 4, 8, 8, generator=generator)
    scaled = z / pair.ours.scale_factor
    torch.testing.assert_close(
        pair.ours.decode(z), pair.autoencoder.decode(scaled).sample, atol=1e-3, rtol=1e-4
    )
    images = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    theirs = pair.autoencoder.encode(images).latent_dist.mean * pair.ours.scale_factor
    torch.testing.assert_close(pair.ours.encode(images), theirs, atol=1e-3, rtol=1e-4)
