from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldm.errors import UsageError
from ldm.sampling.betas import betas
from ldm.sampling.buffers import ddpm_buffers
from ldm.sampling.schedule import AYS_SD1, AYS_SDXL, GRIDS, NoiseSchedule, make_grid
from ldm.sampling.timesteps import Compat, ddim_timesteps, quad_timesteps
from tests.golden_data import tensors

SCHEDULE = NoiseSchedule.from_betas("linear", 1000, 0.00085, 0.012)
GOLDEN = tensors("samplers/schedules.safetensors")
RECORDED_STEPS = (5, 6, 7, 20, 30, 50)


def largest_relative(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).abs() / theirs.abs().clamp(min=1e-30)).max())


@pytest.mark.parametrize("key", sorted(ddpm_buffers(SCHEDULE)))
def test_ddpm_buffers_equal_the_originals_bit_by_bit(key: str) -> None:
    ours = ddpm_buffers(SCHEDULE)[key]
    assert ours.dtype == torch.float32
    assert torch.equal(ours, GOLDEN[f"ddpm.{key}"])


def test_the_twelve_buffers_are_all_there() -> None:
    recorded = {key.removeprefix("ddpm.") for key in GOLDEN if key.startswith("ddpm.")}
    assert set(ddpm_buffers(SCHEDULE)) == recorded
    assert len(recorded) == 12


def test_v_posterior_of_one_makes_the_variance_beta() -> None:
    buffers = ddpm_buffers(SCHEDULE, v_posterior=1.0)
    assert torch.equal(buffers["posterior_variance"], buffers["betas"])


@pytest.mark.parametrize("steps", RECORDED_STEPS)
def test_ddim_timesteps_are_the_originals(steps: int) -> None:
    recorded = GOLDEN[f"S{steps}.eta0.timesteps"].tolist()
    assert ddim_timesteps(1000, steps, "ldm").tolist() == recorded
    if 1000 % steps == 0:
        assert ddim_timesteps(1000, steps, "exact").tolist() == recorded


@pytest.mark.parametrize("steps", RECORDED_STEPS)
def test_ddim_grid_holds_the_originals_alphas(steps: int) -> None:
    rising = make_grid("ddim", SCHEDULE, steps, "ldm").flip(0)
    alphas = 1 / (1 + rising**2)
    # float64 throughout, so nothing is lost: measured 1e-16
    assert (alphas[1:] - GOLDEN[f"S{steps}.eta0.ddim_alphas"]).abs().max() < 1e-14
    assert (alphas[:-1] - GOLDEN[f"S{steps}.eta0.ddim_alphas_prev"]).abs().max() < 1e-14


def test_quad_timesteps_are_the_originals() -> None:
    assert quad_timesteps(1000, 20).tolist() == GOLDEN["S20.quad.timesteps"].tolist()


@pytest.mark.parametrize(
    ("name", "key"),
    [("default", "get_sigmas_10"), ("karras", "karras_10"), ("exponential", "exponential_10")],
)
def test_k_diffusion_grids(name: str, key: str) -> None:
    # theirs is float32 arithmetic; measured 4e-7
    assert largest_relative(make_grid(name, SCHEDULE, 10), GOLDEN[f"k.{key}"].double()) < 1e-6


def test_sigmas_are_k_diffusions() -> None:
    assert largest_relative(SCHEDULE.sigmas, GOLDEN["k.sigmas_all"].double()) < 2e-7


def test_time_of_a_sigma_is_k_diffusions() -> None:
    ours = SCHEDULE.t(GOLDEN["k.sigma_to_t.in"])
    # float32 keeps a time step near 900 to 6e-5
    assert (ours - GOLDEN["k.sigma_to_t.out"]).abs().max() < 2e-4
    assert torch.equal(ours.round().long(), GOLDEN["k.sigma_to_t.quantized"])


@pytest.mark.parametrize("compat", ["exact", "ldm"])
@pytest.mark.parametrize("name", sorted(GRIDS))
def test_any_number_of_steps_gives_a_falling_grid(name: str, compat: Compat) -> None:
    for steps in (*range(1, 61), *range(61, 1000, 47), 999, 1000):
        sigmas = make_grid(name, SCHEDULE, steps, compat)
        assert sigmas.dtype == torch.float64
        assert bool((sigmas.diff() < 0).all())
        assert float(sigmas[-1]) in (0.0, pytest.approx(float(SCHEDULE.sigmas[0]), rel=1e-9))
        if compat == "exact" or name not in ("ddim", "quad"):
            assert len(sigmas) == steps + 1


def test_exact_ddim_is_the_originals_wherever_steps_divide_the_schedule() -> None:
    for steps in (n for n in range(1, 1000) if 1000 % n == 0):
        assert np.array_equal(
            ddim_timesteps(1000, steps, "exact"), ddim_timesteps(1000, steps, "ldm")
        )


@pytest.mark.parametrize(
    ("steps", "count"), [(30, 31), (6, 7), (15, 16), (60, 63), (150, 167), (201, 250)]
)
def test_ldm_ddim_runs_the_originals_number_of_steps(steps: int, count: int) -> None:
    assert len(make_grid("ddim", SCHEDULE, steps, "ldm")) == count + 1


@pytest.mark.parametrize("steps", [3, 9, 27, 36, 37, 101, 111, 251, 333, 501, 999, 1000, 1099])
def test_where_the_originals_crashed_the_last_step_is_clipped(steps: int) -> None:
    chosen = ddim_timesteps(1000, steps, "ldm")
    assert chosen[-1] == 999
    assert len(np.unique(chosen)) == len(chosen)
    unclipped = list(range(0, 1000, max(1000 // steps, 1)))
    assert chosen[:-1].tolist() == [t + 1 for t in unclipped][: len(chosen) - 1]


def test_dpm_solver_grid_is_even_in_time_between_the_outer_steps() -> None:
    sigmas = make_grid("dpm_solver", SCHEDULE, 27)  # 999 / 27 = 37: all steps are whole
    assert SCHEDULE.t(sigmas).tolist() == list(range(999, -1, -37))


def test_grid_arguments_are_checked() -> None:
    with pytest.raises(UsageError, match="unknown grid 'karas'"):
        make_grid("karas", SCHEDULE, 10)
    for steps in (0, -1, 1001):
        with pytest.raises(UsageError, match="steps must be 1 to 1000"):
            make_grid("ddim", SCHEDULE, steps)


@given(st.floats(0, 999))
@settings(max_examples=200, deadline=None)
def test_time_and_sigma_are_inverse(t: float) -> None:
    back = SCHEDULE.t(SCHEDULE.sigma(torch.tensor([t], dtype=torch.float64)))
    assert back.item() == pytest.approx(t, abs=1.1e-3)  # it may snap to a whole number


def test_levels_of_whole_steps_give_whole_steps_in_float32_too() -> None:
    assert SCHEDULE.t(SCHEDULE.sigmas.float()).tolist() == list(range(1000))


def test_levels_outside_the_schedule_are_clamped() -> None:
    assert SCHEDULE.t(torch.tensor([0.0, 1e-9, 1e9])).tolist() == [0, 0, 999]


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("scaled_linear", 0.00085, 0.012),
        ("linear", 0.00085, 0.012),
        ("sqrt_linear", 0.00085, 0.012),
        ("sqrt", math.sqrt(0.00085), math.sqrt(0.012)),
        ("cosine", 4.128422482e-05, 0.999),
        ("squaredcos_cap_v2", 4.128422482e-05, 0.999),
    ],
)
def test_beta_schedules(name: str, first: float, last: float) -> None:
    found = betas(name, 1000, 0.00085, 0.012)
    assert found.shape == (1000,)
    assert found[0] == pytest.approx(first, rel=1e-6)
    assert found[-1] == pytest.approx(last, rel=1e-6)


def test_an_unknown_beta_schedule_is_named() -> None:
    with pytest.raises(UsageError, match="unknown beta schedule 'liner'"):
        NoiseSchedule.from_betas("liner")


def test_a_checkpoints_buffer_gives_the_same_levels() -> None:
    again = NoiseSchedule.from_alphas_cumprod(ddpm_buffers(SCHEDULE)["alphas_cumprod"])
    assert torch.equal(again.sigmas, SCHEDULE.sigmas)


@pytest.mark.parametrize("values", [[0.9, 0.95], [1.0, 0.5], [0.9, 0.0], [0.9], [0.9, math.nan]])
def test_impossible_alphas_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="alphas_cumprod"):
        NoiseSchedule.from_alphas_cumprod(torch.tensor(values))


def test_the_schedule_is_real_even_where_modules_are_built_on_meta() -> None:
    with torch.device("meta"):
        schedule = NoiseSchedule.from_betas()
        assert schedule.sigmas.device.type == "cpu"
        assert all(b.device.type == "cpu" for b in ddpm_buffers(schedule).values())
        assert all(make_grid(name, schedule, 4).device.type == "cpu" for name in GRIDS)


# --- the grids of later programs ------------------------------------------------------------------


def diffusers_sigmas(steps: int, **options: Any) -> list[float]:
    """The noise levels of diffusers' Euler scheduler for Stable Diffusion 1."""
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **options
    )
    scheduler.set_timesteps(steps)
    return [float(sigma) for sigma in scheduler.sigmas]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("steps", [2, 7, 10, 20, 30])
@pytest.mark.parametrize(
    ("grid", "options"),
    [
        ("linspace", {"timestep_spacing": "linspace"}),
        ("leading", {"timestep_spacing": "leading", "steps_offset": 1}),
        ("trailing", {"timestep_spacing": "trailing"}),
        ("karras", {"use_karras_sigmas": True}),
        ("exponential", {"use_exponential_sigmas": True}),
    ],
)
def test_grids_are_those_of_diffusers(grid: str, options: dict[str, Any], steps: int) -> None:
    pytest.importorskip("diffusers")
    schedule = NoiseSchedule.from_betas("linear", 1000, 0.00085, 0.012)
    ours = make_grid(grid, schedule, steps)
    assert ours.tolist() == pytest.approx(diffusers_sigmas(steps, **options), rel=2e-4)


def test_grids_by_their_formulas() -> None:
    schedule = NoiseSchedule.from_betas("linear", 1000, 0.00085, 0.012)
    s = schedule.sigmas.tolist()
    assert make_grid("simple", schedule, 4).tolist() == [s[999], s[749], s[499], s[249], 0]
    assert make_grid("simple", schedule, 3).tolist() == [s[999], s[666], s[333], 0]
    uniform = make_grid("sgm_uniform", schedule, 3).tolist()
    assert uniform == pytest.approx([s[999], s[666], s[333], 0])
    uniform = make_grid("ddim_uniform", schedule, 4).tolist()
    assert uniform == pytest.approx([s[751], s[501], s[251], s[1], 0])
    optimal = make_grid("kl_optimal", schedule, 3).tolist()
    middle = math.tan((math.atan(s[0]) + math.atan(s[999])) / 2)
    assert optimal == pytest.approx([s[999], middle, s[0], 0])
    assert make_grid("ays", schedule, 11).tolist() == pytest.approx([*AYS_SD1, 0])
    assert make_grid("ays_sdxl", schedule, 11).tolist() == pytest.approx([*AYS_SDXL, 0])
    assert make_grid("ays", schedule, 2).tolist() == pytest.approx([14.615, 0.029, 0])
    # ComfyUI's linear_quadratic_schedule for 8 steps, as shares of the highest level
    shares = [1, 0.99375, 0.9875, 0.98125, 0.975]
    found = make_grid("linear_quadratic", schedule, 8) / s[999]
    assert found[:5].tolist() == pytest.approx(shares)
    assert found[-1] == 0
