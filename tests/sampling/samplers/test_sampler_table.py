"""What every sampler of the table must do, found out with a denoiser in closed form.

For images of one normal distribution, z ~ N(0, WIDTH**2), the best denoiser is linear, and both
the exact solution and the spread of the noisy samplers are known.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.errors import UsageError
from ldm.jobs.fields import SAMPLER_ALIASES
from ldm.sampling.denoiser import Prediction, make_denoiser
from ldm.sampling.noise import ImageNoise, StreamNoise
from ldm.sampling.samplers import (
    SAMPLERS,
    Sampler,
    final_latent,
    find_sampler,
    masked,
    start_latent,
)
from ldm.sampling.schedule import GRIDS, NoiseSchedule, make_grid

WIDTH = 0.7
SCHEDULE = NoiseSchedule.from_betas("linear", 1000, 0.00085, 0.012)
EVERY = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=list(SAMPLERS))
# All but those of consistency models, which sample nothing else, and the one that has no set steps.
SOLVERS = pytest.mark.parametrize(
    "sampler", [s for s in SAMPLERS.values() if s.order], ids=lambda s: s.name
)
STOCHASTIC = [s for s in SAMPLERS.values() if "eta" in s.options and s.order]


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """Mean of z given x = z + sigma * noise."""
    sigma = sigma.view(-1, *[1] * (x.ndim - 1))
    return x * (WIDTH**2 / (WIDTH**2 + sigma**2))


def spread(sigma: float) -> float:
    """Standard deviation of x at a noise level."""
    return math.hypot(WIDTH, sigma)


def even_in_log(steps: int) -> Tensor:
    return torch.logspace(0, -1, steps + 1, dtype=torch.float64)


def still(sampler: Sampler) -> dict[str, Any]:
    """Options without noise."""
    if sampler.name == "restart":
        return {"restarts": False}
    return {"eta": 0.0} if "eta" in sampler.options else {}


def measured_order(errors: list[float]) -> float:
    """From errors with so many steps, twice and four times as many; the last two tell it best."""
    return math.log2(errors[-2] / errors[-1])


@SOLVERS
def test_measured_order_is_the_declared_one(sampler: Sampler) -> None:
    x = torch.ones(1, 1, dtype=torch.float64)
    errors = []
    for steps in (162, 324, 648):
        sigmas = even_in_log(steps)
        end = sampler.fn(gaussian, x, sigmas, **still(sampler))
        errors.append(abs(float(end) - spread(0.1) / spread(1.0)))
    assert measured_order(errors) == pytest.approx(sampler.order, abs=0.1)


@pytest.mark.parametrize("sampler", STOCHASTIC, ids=lambda s: s.name)
def test_noisy_samples_get_the_right_spread(sampler: Sampler) -> None:
    """Each draw is a unit vector of its own: the squared length of the result is its variance."""

    class UnitVectors:
        def __init__(self, size: int) -> None:
            self.left = list(torch.eye(size, dtype=torch.float64)[1:])

        def draw(self, shape: tuple[int, ...]) -> Tensor:
            return self.left.pop(0)[None]

        def skip(self, draws: int, shape: tuple[int, ...]) -> None:
            raise AssertionError("with eta 1 every draw counts")

    errors = []
    for steps in (39, 78, 156):
        size = 1 + 2 * steps
        x = torch.zeros(1, size, dtype=torch.float64)
        x[0, 0] = spread(1.0)
        end = sampler.fn(gaussian, x, even_in_log(steps), noise=UnitVectors(size), eta=1.0)
        errors.append(abs(float((end**2).sum()) - spread(0.1) ** 2))
    assert errors[-1] < 0.02 * spread(0.1) ** 2
    # first order or better: a noisy method may be of lower order than its noiseless form
    assert measured_order(errors) > 0.9


def run(
    sampler: Sampler, steps: int, seeds: list[int], grid: str | None = None, **more: Any
) -> Tensor:
    """Sample latents from seeds with the sampler's own grid and defaults, in float32."""
    sigmas = make_grid(grid or sampler.grid, SCHEDULE, steps)
    noise = ImageNoise(seeds)
    x = start_latent(sampler, noise.draw((len(seeds), 4, 8, 8)), float(sigmas[0]))
    x = sampler.fn(gaussian, x, sigmas, noise=noise, **more)
    return final_latent(sampler, x, float(sigmas[-1]))


@EVERY
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 50, 999, 1000])
def test_steps_are_just_as_many_as_asked_for(sampler: Sampler, steps: int) -> None:
    seen: list[int] = []
    end = run(sampler, steps, [0], on_step=lambda i, x, denoised: seen.append(i))
    assert seen == list(range(steps))
    assert end.dtype == torch.float32
    assert bool(end.isfinite().all())


@EVERY
@pytest.mark.parametrize("grid", sorted(GRIDS))
@pytest.mark.parametrize("steps", [1, 2, 12])
def test_every_sampler_walks_every_grid(sampler: Sampler, grid: str, steps: int) -> None:
    sigmas = make_grid(grid, SCHEDULE, steps)
    x = torch.full((1, 4, 8, 8), float(sigmas[0]))
    end = sampler.fn(gaussian, x, sigmas, noise=ImageNoise([0]))
    assert bool(end.isfinite().all())


@EVERY
def test_one_step_to_zero_is_the_denoiser(sampler: Sampler) -> None:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    end = sampler.fn(gaussian, x, torch.tensor([2.0, 0.0]), noise=ImageNoise([0, 1]))
    assert torch.allclose(end, gaussian(x, torch.full((2,), 2.0)), atol=1e-6)


@SOLVERS
def test_fifty_steps_sample_the_distribution(sampler: Sampler) -> None:
    # 50 seeds of 256 numbers give the standard deviation to 0.7 %; methods of first order miss by
    # up to 7 %. (On the default grid, which ends with one big jump, dpmpp_2m_sde misses by 11 %.)
    latents = run(sampler, 50, list(range(50)), grid="karras")
    assert float(latents.std()) == pytest.approx(WIDTH, rel=0.1)


@EVERY
def test_the_same_seed_makes_the_same_latent(sampler: Sampler) -> None:
    assert torch.equal(run(sampler, 10, [3, 4]), run(sampler, 10, [3, 4]))
    assert not torch.equal(run(sampler, 10, [3, 4])[0], run(sampler, 10, [5])[0])


@EVERY
def test_an_image_does_not_depend_on_its_batch(sampler: Sampler) -> None:
    batch = run(sampler, 10, [8, 9, 10])
    for i, seed in enumerate((8, 9, 10)):
        assert torch.equal(run(sampler, 10, [seed])[0], batch[i])


@EVERY
def test_inputs_are_left_alone(sampler: Sampler) -> None:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sigmas = make_grid(sampler.grid, SCHEDULE, 5)
    kept_x, kept_sigmas = x.clone(), sigmas.clone()
    outputs: list[tuple[Tensor, Tensor]] = []

    def constant(x: Tensor, sigma: Tensor) -> Tensor:
        outputs.append((given := torch.full_like(x, 0.5), given.clone()))
        return given

    steps: list[tuple[Tensor, Tensor]] = []
    sampler.fn(
        constant,
        x,
        sigmas,
        noise=ImageNoise([0]),
        on_step=lambda i, x, denoised: steps.append((x, x.clone())),
    )
    assert torch.equal(x, kept_x)
    assert torch.equal(sigmas, kept_sigmas)
    # nothing that was handed out or in on the way is written to afterwards
    assert all(torch.equal(now, then) for now, then in outputs + steps)


@EVERY
def test_draws_tells_whether_noise_is_needed(sampler: Sampler) -> None:
    x, sigmas = torch.ones(1, 4), make_grid(sampler.grid, SCHEDULE, 20)
    if sampler.draws:
        with pytest.raises(ValueError, match="needs noise"):
            sampler.fn(gaussian, x, sigmas)
    else:
        sampler.fn(gaussian, x, sigmas)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_uses_up_noise_in_every_step(eta: float) -> None:
    """DDPM of the originals drew in the step to 0, too; what follows in a stream depends on it."""
    noise = StreamNoise(0, "cpu")
    sigmas = make_grid("default", SCHEDULE, 5)
    find_sampler("ddim").fn(gaussian, torch.ones(1, 4), sigmas, noise=noise, eta=eta)
    assert noise.draws == 5


@EVERY
def test_grid_and_names_are_known(sampler: Sampler) -> None:
    assert sampler.grid in GRIDS
    for name in (sampler.name, *sampler.aliases):
        assert find_sampler(name) is sampler


def test_the_command_line_knows_just_the_samplers_there_are() -> None:
    assert set(SAMPLER_ALIASES) == set(SAMPLERS)


def test_an_unknown_sampler_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="unknown sampler 'ddimm': did you mean 'ddim'"):
        find_sampler("ddimm")
    with pytest.raises(UsageError, match="known are "):
        find_sampler("???")


def test_plms_solves_v_in_closed_form_and_raw_outputs_do_not() -> None:
    """The original's fault, without a network: the exact v taken for noise goes elsewhere."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        sigma = SCHEDULE.sigma(t).view(-1, 1)
        c_skip, c_out, c_in = Prediction.V.scalings(sigma)
        return (gaussian(x / c_in, sigma) - c_skip * x / c_in) / c_out

    sampler = find_sampler("plms")
    sigmas = make_grid("ddim", SCHEDULE, 50)
    first, last = float(sigmas[0]), float(sigmas[-1])
    exact = spread(last) / spread(first)
    x = torch.ones(1, 1)
    ends = {
        kind: float(sampler.fn(make_denoiser(network, SCHEDULE, kind), x, sigmas))
        for kind in (Prediction.V, Prediction.EPS)
    }
    assert ends[Prediction.V] == pytest.approx(exact, rel=0.01)
    assert abs(ends[Prediction.EPS] - exact) > 5 * exact


def test_plms_of_one_step_looks_twice_at_the_same_time() -> None:
    """Over the variance-preserving latent, as the originals had it: CompVis' plms.py."""
    s = torch.tensor([0.05, 0.03], dtype=torch.float64)
    a, a_prev = (1 / (1 + s**2)).tolist()

    def eps_of(latent: Tensor) -> Tensor:  # at the one time there is
        return torch.sin(3 * latent)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.tolist() == [s[0].item()] * len(x)
        return x - sigma.view(-1, 1, 1, 1) * eps_of(x * math.sqrt(a))

    def stepped(latent: Tensor, eps: Tensor) -> Tensor:
        z = (latent - math.sqrt(1 - a) * eps) / math.sqrt(a)
        return math.sqrt(a_prev) * z + math.sqrt(1 - a_prev) * eps

    latent = torch.randn((2, 4, 3, 3), dtype=torch.float64, generator=torch.manual_seed(0))
    eps = eps_of(latent)
    wanted = stepped(latent, (eps + eps_of(stepped(latent, eps))) / 2)
    ours = SAMPLERS["plms"].fn(denoise, latent / math.sqrt(a), s) * math.sqrt(a_prev)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12)


def test_masked_sampling_needs_noise_and_keeps_the_known_part_noised() -> None:
    z, mask = torch.full((1, 4, 8, 8), 3.0), torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    sigmas = make_grid("karras", SCHEDULE, 20)
    fn = masked(find_sampler("euler").fn, z, mask)
    x = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match="needs noise"):
        fn(gaussian, x, sigmas)

    def sees_z(x: Tensor, sigma: Tensor) -> Tensor:
        known = x[..., :4]
        assert abs(float(known.mean()) - 3) < 6 * float(sigma) / math.sqrt(known.numel())
        return torch.where(mask.bool(), z, 0.0)

    end = fn(sees_z, x, sigmas, noise=ImageNoise([0]))
    assert torch.equal(end, torch.where(mask.bool(), z, 0.0))
