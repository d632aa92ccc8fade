"""Few-step samplers, zero terminal SNR and guidance rescale, as diffusers 0.42 ran them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.sampling.denoiser import DenoiseFn, Network, Prediction, make_denoiser
from ldm.sampling.guidance import cfg, rescaling
from ldm.sampling.samplers import find_sampler, start_latent
from ldm.sampling.schedule import NoiseSchedule, make_grid
from tests.golden_data import case, tensors

FOLDER = "modules/sampling-distilled"
CASES = case(f"{FOLDER}/case.json")["cases"]
INPUTS = tensors(f"{FOLDER}/inputs.safetensors")
OUTPUTS = tensors(f"{FOLDER}/outputs.safetensors")
SCHEDULE = NoiseSchedule.from_betas("linear", 1000, 0.00085, 0.012)


class Recorded:
    """The recorded noise, which must be used up."""

    def __init__(self, name: str) -> None:
        self.left = list(OUTPUTS.get(f"{name}.noise", []))

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        return self.left.pop(0)

    def skip(self, draws: int, shape: tuple[int, ...]) -> None:
        """Nothing was recorded for these."""


def network(shift: str = "shift") -> Network:
    """The closed form that the recording was made with."""

    def output(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(0.7 * x + INPUTS[shift]) + 0.1 * torch.sin(t / 200).view(-1, 1, 1, 1)

    return output


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("lcm", "tcd"))])
def test_consistency_models(name: str) -> None:
    sampler, row, noise = find_sampler(name[:3]), CASES[name], Recorded(name)
    sigmas = make_grid(sampler.name, SCHEDULE, row["steps"])
    assert SCHEDULE.t(sigmas[:-1]).tolist() == OUTPUTS[f"{name}.timesteps"].tolist()
    seen: list[Tensor] = []

    def keep(i: int, x: Tensor, denoised: Tensor) -> None:
        seen.append(x / float((1 + sigmas[i + 1] ** 2).sqrt()))

    x = start_latent(find_sampler("tcd"), INPUTS["x_T"], float(sigmas[0]))
    options = {"eta": row["eta"], "schedule": SCHEDULE} if "eta" in row else {}
    denoise = make_denoiser(network(), SCHEDULE, Prediction.EPS)
    sampler.fn(denoise, x, sigmas, noise=noise, on_step=keep, **options)
    torch.testing.assert_close(torch.stack(seen), OUTPUTS[f"{name}.x"], rtol=0, atol=5e-5)
    assert noise.left == []


def test_no_signal_is_left_at_the_last_step() -> None:
    ours, theirs = SCHEDULE.zero_snr.alphas_cumprod, OUTPUTS["zsnr.alphas_cumprod"]
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=1e-6)
    assert SCHEDULE.zero_snr.sigmas[-1] == pytest.approx(4096)


def test_euler_from_no_signal() -> None:
    sigmas = make_grid("trailing", SCHEDULE.zero_snr, 6)
    torch.testing.assert_close(sigmas.float(), OUTPUTS["euler_zsnr_6.sigmas"])
    seen: list[Tensor] = []
    denoise = make_denoiser(network(), SCHEDULE.zero_snr, Prediction.V)
    x = start_latent(find_sampler("euler"), INPUTS["x_T"], float(sigmas[0]))
    find_sampler("euler").fn(denoise, x, sigmas, on_step=lambda i, x, _: seen.append(x))
    torch.testing.assert_close(torch.stack(seen), OUTPUTS["euler_zsnr_6.x"], rtol=1e-4, atol=2e-4)


def test_rescaled_guidance_from_no_signal() -> None:
    def denoiser(shift: str) -> DenoiseFn:
        return make_denoiser(network(shift), SCHEDULE.zero_snr, Prediction.V)

    def pair(x: Tensor, sigma: Tensor) -> Tensor:
        sides = zip(("shift_uncond", "shift"), x.chunk(2), sigma.chunk(2), strict=True)
        return torch.cat([denoiser(shift)(*half) for shift, *half in sides])

    ddim, seen = find_sampler("ddim"), []
    sigmas = make_grid("trailing", SCHEDULE.zero_snr_limit, 5)

    def keep(i: int, x: Tensor, denoised: Tensor) -> None:
        seen.append(x / float((1 + sigmas[i + 1] ** 2).sqrt()))

    denoise = cfg(denoiser("shift"), pair, 7.5, rescale=rescaling(0.7, Prediction.V))
    ddim.fn(denoise, start_latent(ddim, INPUTS["x_T"], float(sigmas[0])), sigmas, on_step=keep)
    torch.testing.assert_close(torch.stack(seen), OUTPUTS["ddim_zsnr_5.x"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_guidance_rescale(share: float) -> None:
    cond, without = INPUTS["cond"], INPUTS["uncond"]
    guided, sigma = without + 7.5 * (cond - without), torch.full((len(cond),), 2.0)
    x = torch.ones_like(cond)
    # as estimates of a network for noise
    ours = rescaling(share, Prediction.EPS)(x - 2 * guided, x - 2 * cond, x, sigma)
    theirs = OUTPUTS[f"cfg_7.5_rescale_{share}"]
    torch.testing.assert_close((x - ours) / 2, theirs, rtol=1e-5, atol=2e-5)
