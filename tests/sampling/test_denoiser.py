from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.sampling.denoiser import Prediction, make_denoiser
from ldm.sampling.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.from_betas("linear", 1000, 0.00085, 0.012)
TARGETS = {
    Prediction.EPS: lambda z, noise, ac: noise,
    Prediction.V: lambda z, noise, ac: ac.sqrt() * noise - (1 - ac).sqrt() * z,
    Prediction.X0: lambda z, noise, ac: z,
}


@pytest.mark.parametrize("prediction", list(TARGETS))
def test_a_perfect_network_makes_a_perfect_denoiser(prediction: Prediction) -> None:
    """The network gets the variance-preserving latent and the time step it was trained on."""
    generator = torch.Generator().manual_seed(0)
    z, noise = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    steps = torch.tensor([0, 500, 999])
    ac = SCHEDULE.alphas_cumprod[steps].float().view(-1, 1, 1, 1)
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.extend((x, t))
        return TARGETS[prediction](z, noise, ac)

    sigma = SCHEDULE.sigmas[steps].float()
    x = z + sigma.view(-1, 1, 1, 1) * noise
    denoised = make_denoiser(network, SCHEDULE, prediction)(x, sigma)
    assert denoised.dtype == torch.float32
    # x is of order 15 at the last step, so that 1e-5 is float32 round-off
    assert (denoised - z).abs().max() < 1e-5
    assert (seen[0] - (ac.sqrt() * z + (1 - ac).sqrt() * noise)).abs().max() < 1e-5
    assert seen[1].tolist() == [0, 500, 999]


def test_flow_scalings() -> None:
    z, noise = torch.tensor([2.0]), torch.tensor([-1.0])
    sigma = torch.tensor([0.25])
    c_skip, c_out, c_in = Prediction.FLOW.scalings(sigma)
    x = (1 - sigma) * z + sigma * noise
    assert torch.equal(c_in * x, x)
    assert torch.equal(c_skip * x + c_out * (noise - z), z)


def test_the_network_has_its_own_precision() -> None:
    seen: list[torch.dtype] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.extend((x.dtype, t.dtype))
        return x

    denoise = make_denoiser(network, SCHEDULE, Prediction.EPS, torch.bfloat16)
    x = torch.ones(1, 4, 2, 2)
    assert denoise(x, torch.ones(1)).dtype == torch.float32
    assert seen == [torch.bfloat16, torch.float32]
    assert torch.equal(x, torch.ones(1, 4, 2, 2))


def test_predictions_are_found_by_the_names_that_users_write() -> None:
    assert [Prediction(name) for name in ("eps", "v", "x0", "flow")] == list(Prediction)
