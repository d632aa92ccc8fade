"""Samplers and grids by everybody's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ldm.cli.app import run
from ldm.errors import JobError
from ldm.jobs.fields import (
    CFG_PP_SAMPLERS,
    CHURN_SAMPLERS,
    ETA_SAMPLERS,
    GRID_NAMES,
    NOISY_SAMPLERS,
    SAMPLER_ALIASES,
)
from ldm.jobs.files import read_jobs
from ldm.jobs.job import Job
from ldm.jobs.noise_options import noise_notes
from ldm.jobs.sampler_names import (
    GRID_TITLES,
    SAMPLER_TITLES,
    grid_of,
    own_grid,
    own_order,
    sampler_fields,
    webui_schedule,
    webui_title,
    with_our_names,
)
from ldm.sampling.samplers import SAMPLERS
from tests.tiny_runs import place


@pytest.mark.parametrize(
    ("name", "sampler", "grid"),
    [
        ("Euler a", "euler_ancestral", None),
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("dpm++ 2m sde  exponential", "dpmpp_2m_sde", "exponential"),
        ("DPM++ 3M SDE SGM Uniform", "dpmpp_3m_sde", "sgm_uniform"),
        ("Euler Align Your Steps", "euler", "ays"),
        ("dpmpp_2m_sde_gpu", "dpmpp_2m_sde", None),
        ("EulerAncestralDiscreteScheduler", "euler_ancestral", None),
        ("EulerDiscrete", "euler", None),
        ("DPMSolverMultistepScheduler", "dpmpp_2m", None),
        ("sample_dpmpp_2s_ancestral", "dpmpp_2s_ancestral", None),
        ("DDPMScheduler", "euler_ancestral", None),
        ("lcm", "lcm", None),
        ("dpmpp 2m karras", "dpmpp_2m", "karras"),
        ("UniPC", "uni_pc", None),
        ("dpmpp_2m beta", "dpmpp_2m", "beta"),
        ("DPM++ 2M Beta", "dpmpp_2m", "beta_sigmas"),
    ],
)
def test_a_sampler_of_another_program(name: str, sampler: str, grid: str | None) -> None:
    expected = {"sampler": sampler} | ({} if grid is None else {"grid": grid})
    assert sampler_fields(name) == expected


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("Karras", "karras"),
        ("SGM Uniform", "sgm_uniform"),
        ("KL Optimal", "kl_optimal"),
        ("normal", "default"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_grid_of_another_program(name: str, grid: str) -> None:
    assert grid_of(name) == grid


def test_every_name_comes_back() -> None:
    assert SAMPLER_TITLES.keys() == SAMPLER_ALIASES.keys()
    assert GRID_TITLES.keys() <= set(GRID_NAMES)
    for own, names in SAMPLER_TITLES.items():
        assert sampler_fields(webui_title(own)) == {"sampler": own}
        for title in names.all:
            assert SAMPLER_ALIASES.keys() >= {own}
            found = with_our_names({"sampler": title})
            assert own in (found["sampler"], *(k for k, v in SAMPLER_ALIASES.items()
                                               if found["sampler"] in v))  # fmt: skip
    for own in GRID_TITLES:
        if webui_schedule(own):
            assert grid_of(webui_schedule(own)) == own


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sampler": "DPM++ 2M Karas"}, r"did you mean DPM\+\+ 2M Karras\?"),
        ({"sampler": "karras"}, "is a noise schedule; use --grid karras"),
        ({"grid": "SGM Unifrm"}, "did you mean SGM Uniform"),
        ({"sampler": "best"}, "'best' is not known"),
        ({"sampler": "Euler Karras", "grid": "exponential"}, "contains the grid karras"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        with_our_names(given)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (
            "DPMSolverMultistepScheduler(use_karras_sigmas=True, algorithm_type='sde-dpmsolver++')",
            {"sampler": "dpmpp_2m_sde", "grid": "karras"},
        ),
        (
            '{"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing", '
            '"rescale_betas_zero_snr": true, "prediction_type": "v_prediction", "beta_end": 0.012}',
            {"sampler": "euler", "grid": "trailing", "zero_snr": True, "prediction": "v"},
        ),
        ("UniPCMultistepScheduler(solver_type='bh1')", {"sampler": "uni_pc"}),
        ("LCMScheduler()", {"sampler": "lcm", "grid": "lcm"}),
    ],
)
def test_a_scheduler_of_diffusers_with_its_options(text: str, fields: dict[str, Any]) -> None:
    assert sampler_fields(text) == fields


@pytest.mark.parametrize(
    "text",
    [
        "DPMSolverMultistepScheduler(algorithm_type='dpmsolver')",
        "DDIMScheduler(thresholding=True)",
        "EulerDiscreteScheduler(timestep_spacing='odd')",
        "EulerDiscreteScheduler(1 +)",
        '{"_class_name": "NobodysScheduler"}',
        '{"_class_name": ',
    ],
)
def test_a_scheduler_that_would_mean_something_else(text: str) -> None:
    with pytest.raises(JobError, match=r"no counterpart here|not a scheduler"):
        sampler_fields(text)


def test_the_facts_are_those_of_the_functions() -> None:
    for name, sampler in SAMPLERS.items():
        assert (own_order(name), own_grid(name)) == (sampler.order, sampler.grid)
        assert (name in ETA_SAMPLERS) == ("eta" in sampler.options)
        assert (name in CHURN_SAMPLERS) == ("churn" in sampler.options)
        assert (name in CFG_PP_SAMPLERS) == ("unguided" in sampler.options)
        if sampler.draws:
            assert name in (*ETA_SAMPLERS, *NOISY_SAMPLERS)


@pytest.mark.parametrize(
    ("fields", "notes"),
    [
        ({"sampler": "lcm", "eta": 0.5}, ["--eta is ignored: lcm adds a fixed amount of noise"]),
        ({"sampler": "euler", "eta": 0.5}, ["--eta is ignored: euler draws no noise"]),
        ({"sampler": "euler", "s_noise": 1.1}, ["--s-noise is ignored: euler adds no noise here"]),
        ({"sampler": "euler", "s_noise": 1.1, "s_churn": 5.0}, []),
        (
            {"sampler": "dpm_fast", "grid": "karras"},
            ["--grid karras sets only the ends: dpm_fast chooses its own steps"],
        ),
    ],
)
def test_what_a_sampler_takes_no_notice_of(fields: dict[str, Any], notes: list[str]) -> None:
    assert noise_notes(Job(**fields)) == notes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler": "dpmpp_2m", "s_churn": 1.0}, "--s-churn: dpmpp_2m has no use for it"),
        ({"s_tmin": 1.0}, "do nothing without --s-churn"),
        ({"s_noise": -1.0}, "--s-noise must be 0 or more"),
        ({"guidance_rescale": 2.0}, "--guidance-rescale must be 0 to 1"),
    ],
)
def test_noise_options_that_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        Job(**fields).validate()


def test_a_job_file_may_name_the_schedule_type(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text(
        "prompt,sampler_name,Schedule type\na,DPM++ 2M,SGM Uniform\na,Euler a,Automatic\n"
    )
    rows = read_jobs(str(tmp_path / "jobs.csv"), {})
    assert [row["sampler"] for row in rows] == ["dpmpp_2m", "euler_ancestral"]
    assert [row.get("grid") for row in rows] == ["sgm_uniform", None]


def test_flags_take_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    place(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["txt2img", "--prompt", "x", "--model", "tiny", "--print-config"]
    assert run([*words, "--sampler", "DPM++ 2M Karras"]) == 0
    shown = capfd.readouterr().out
    assert "dpmpp_2m " in shown
    assert "karras " in shown
    assert run([*words, "--sampler", "Euler", "--grid", "SGM Uniform"]) == 0
    assert "sgm_uniform" in capfd.readouterr().out
