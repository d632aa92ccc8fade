"""A model's four methods, on tiny random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ldm.models.model import Model
from ldm.sampling.denoiser import Prediction
from ldm.sampling.schedule import NoiseSchedule
from tests.tiny_models import make, v1_tree, v2_tree


@pytest.fixture(scope="module")
def model() -> Model:
    return make(v1_tree())


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


SIGMA = torch.tensor([3.0, 3.0])


def test_condition_embeds_each_text(model: Model) -> None:
    cond, cut = model.condition(["a cat", "a dog"])
    assert cond.crossattn is not None
    assert cond.crossattn.shape == (2, 77, 4)
    assert cut == ["", ""]
    assert cond.vector is None
    assert cond.concat is None


def test_scale_one_is_the_condition_alone(model: Model, x: torch.Tensor) -> None:
    cond, _ = model.condition(["a cat", "a dog"])
    uncond, _ = model.condition(["", ""])
    alone = model.denoiser(cond)(x, SIGMA)
    assert torch.equal(model.denoiser(cond, uncond, 1.0)(x, SIGMA), alone)


def test_guidance_goes_on_beyond_the_condition(model: Model, x: torch.Tensor) -> None:
    cond, _ = model.condition(["a cat", "a dog"])
    uncond, _ = model.condition(["", ""])
    with_cond, without = model.denoiser(cond)(x, SIGMA), model.denoiser(uncond)(x, SIGMA)
    guided = model.denoiser(cond, uncond, 7.5)(x, SIGMA)
    torch.testing.assert_close(guided, without + 7.5 * (with_cond - without), rtol=1e-4, atol=1e-4)


def test_prediction_decides_what_the_output_means(x: torch.Tensor) -> None:
    model = make(v1_tree())
    cond, _ = model.condition(["a cat", "a dog"])
    model.prediction = Prediction.EPS
    eps = model.denoiser(cond)(x, SIGMA)
    c_in = (SIGMA[0] ** 2 + 1) ** -0.5
    output = model.predict(x * c_in, model.schedule.t(SIGMA), cond)
    torch.testing.assert_close(eps, x - SIGMA[0] * output)
    model.prediction = Prediction.V
    v = model.denoiser(cond)(x, SIGMA)
    torch.testing.assert_close(v, c_in**2 * x - SIGMA[0] * c_in * output)


def test_concat_goes_in_beside_the_latent(x: torch.Tensor) -> None:
    tree = v1_tree()
    tree["model"]["target"] = "ldm.models.diffusion.ddpm.LatentInpaintDiffusion"
    tree["model"]["params"]["unet_config"]["params"]["in_channels"] = 9
    model = make(tree)
    cond, _ = model.condition(["a cat", "a dog"])
    held = replace(cond, concat=torch.ones(2, 5, 8, 8))
    other = replace(cond, concat=torch.zeros(2, 5, 8, 8))
    one, two = model.denoiser(held)(x, SIGMA), model.denoiser(other)(x, SIGMA)
    assert one.shape == x.shape
    assert not torch.allclose(one, two)


def test_integer_vectors_stay_integers(x: torch.Tensor) -> None:
    tree = v1_tree()
    tree["model"]["params"]["unet_config"]["params"]["num_classes"] = 10
    model = make(tree).half()
    cond, _ = model.condition(["a cat", "a dog"])
    cond = replace(cond, vector=torch.tensor([1, 9]))
    assert model.predict(x, torch.tensor([1.0, 1.0]), cond).dtype == torch.float16


def test_encode_and_decode_scale_the_latents(model: Model) -> None:
    images = torch.rand(1, 3, 32, 48) * 2 - 1
    posterior = model.first_stage_model.encode(images)
    z = model.encode(images)
    assert z.shape == (1, 4, 4, 6)
    torch.testing.assert_close(z, 0.18215 * posterior.mode())
    noise = torch.randn_like(z)
    torch.testing.assert_close(model.encode(images, noise), 0.18215 * posterior.sample(noise))
    decoded = model.decode(z)
    assert decoded.shape == images.shape
    torch.testing.assert_close(decoded, model.first_stage_model.decode(z / 0.18215))


def test_half_precision_inside_float32_outside(x: torch.Tensor) -> None:
    model = make(v2_tree()).bfloat16()
    cond, _ = model.condition(["a cat", "a dog"])
    assert model.denoiser(cond)(x, SIGMA).dtype == torch.float32
    assert model.decode(x[:1, :, :2, :2]).dtype == torch.float32
    assert model.encode(torch.zeros(1, 3, 16, 16)).dtype == torch.float32


def test_the_schedule_is_the_one_in_the_buffers(model: Model) -> None:
    kept = model.alphas_cumprod.double()
    assert torch.equal(model.schedule.alphas_cumprod, kept)
    other = make(v1_tree())
    other.use_schedule(NoiseSchedule.from_betas("cosine", 100))
    assert len(other.schedule) == len(other.betas) == 100


def test_without_a_text_encoder() -> None:
    tree = v1_tree()
    tree["model"]["params"]["cond_stage_config"] = "__is_unconditional__"
    cond, cut = make(tree).condition(["x", "y"])
    assert (cond.crossattn, cond.vector, cond.concat) == (None, None, None)
    assert cut == ["", ""]


def test_sizes(model: Model) -> None:
    assert (model.factor, model.latent_channels) == (8, 4)
    assert model.network is model.model.diffusion_model


def test_a_pooled_text_is_a_vector_too(x: torch.Tensor) -> None:
    tree = v1_tree()
    params = tree["model"]["params"]
    params["cond_stage_config"]["params"]["pooled"] = True
    width = params["cond_stage_config"]["params"]["text_config"]["hidden_size"]
    params["unet_config"]["params"] |= {"num_classes": "sequential", "adm_in_channels": width}
    model = make(tree)
    cond, _ = model.condition(["a cat", ""])
    assert cond.vector is not None
    assert cond.crossattn is not None
    torch.testing.assert_close(cond.vector, cond.crossattn[:, -1])
    one, other = model.predict(x[:1].repeat(2, 1, 1, 1), torch.tensor([500.0, 500.0]), cond)
    assert not torch.allclose(one, other)
    assert make(v1_tree()).condition(["a cat"])[0].vector is None


def test_tiles_change_little(model: Model) -> None:
    """Autoencoders of random weights are the hardest: nothing in them is smooth."""
    z = torch.randn(1, 4, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain, tiled = model.decode(z, "off"), model.decode(z, "on")
        assert plain.shape == tiled.shape
        assert float((plain.clamp(-1, 1) - tiled.clamp(-1, 1)).abs().mean()) / 2 < 1 / 255
        images = plain.clamp(-1, 1)
        there, back = model.encode(images, tiling="off"), model.encode(images, tiling="on")
    assert float((there - back).abs().mean()) < 0.02 * float(there.std())
