"""Samplers and grids by everybody's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ldm.cli.app import run
from ldm.errors import JobError
from ldm.jobs.fields import GRID_NAMES, SAMPLER_ALIASES
from ldm.jobs.sampler_names import (
    GRID_TITLES,
    SAMPLER_TITLES,
    grid_of,
    sampler_fields,
    webui_schedule,
    webui_title,
    with_our_names,
)
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
        ({"sampler": "DPM++ 2M Karas"}, "did you mean DPM"),
        ({"sampler": "best"}, "'best' is not known"),
        ({"sampler": "Euler Karras", "grid": "exponential"}, "contains the grid karras"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        with_our_names(given)


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
