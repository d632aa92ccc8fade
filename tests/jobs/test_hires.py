"""Hires fix without a model: the size of the second pass, its steps, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ldm.errors import JobError
from ldm.jobs.hires import grid_steps, hires_size, parse_hires
from ldm.jobs.job import Defaults, Job

ASKED = Job(prompt="a cat", hires="2")
DEFAULTS = Defaults(512, 512, 7.5, 20, "ddim", "a test")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2", (1024, 1024)),
        ("1.5", (768, 768)),
        ("1.3", (640, 640)),  # 665, rounded down to a multiple of 64
        ("768x1024", (768, 1024)),
        (" 768 X 512 ", (768, 512)),
    ],
)
def test_the_size_of_the_second_pass(text: str, size: tuple[int, int]) -> None:
    assert hires_size(text, (512, 512), 64) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1", "a factor above 1"),
        ("9", "up to 8"),
        ("nan", "a factor above 1"),
        ("twice", "a size like 1024x1536, not 'twice'"),
        ("1.1", "does not enlarge 512x512"),
        ("700x512", "try 704x512"),
        ("1024x448", "smaller than the first pass, 512x512"),
        ("37x51", "smaller than the first pass, 512x512; use a larger size"),
        ("100000x100000", "a side may have at most 99999 pixels"),
    ],
)
def test_sizes_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        hires_size(text, (512, 512), 64)


@pytest.mark.parametrize(
    ("steps", "strength", "total"),
    # int(steps / min(strength, 0.999)), as AUTOMATIC1111's sd_samplers_common.py counts
    [(20, 0.7, 28), (20, 0.5, 40), (20, 1.0, 20), (1, 0.75, 1), (20, 0.0, 20), (1000, 1.0, None)],
)
def test_all_of_the_steps_are_taken(steps: int, strength: float, total: int | None) -> None:
    if total is None:
        with pytest.raises(JobError, match="too low for 1000 steps"):
            grid_steps(steps, strength)
    else:
        assert grid_steps(steps, strength) == total


def test_gaps_are_filled_from_the_first_pass() -> None:
    job = ASKED.resolve(DEFAULTS, lambda: 1).job
    assert (job.hires_upscaler, job.hires_strength, job.hires_steps) == ("latent", 0.7, 20)
    plain = replace(ASKED, hires=None).resolve(DEFAULTS, lambda: 1).job
    assert (plain.hires_upscaler, plain.hires_strength, plain.hires_steps) == (None, None, None)


def test_the_size_of_the_finished_image() -> None:
    job = replace(ASKED.resolve(DEFAULTS, lambda: 1).job, hires="1024x768")
    assert job.image_size() == (1024, 768)
    assert (job.image_values(0)["width"], job.image_values(0)["height"]) == (1024, 768)
    assert replace(job, hires=None).image_size() == (512, 512)
    assert parse_hires("1.25") == 1.25


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"noise": "stream"}, "needs --noise image"),
        ({"fixed_code": True}, "needs --noise image"),
        ({"schedule_compat": "ldm"}, "needs --noise image"),
        ({"hires_strength": 1.5}, "--hires-strength must be 0 to 1"),
        ({"hires_steps": 0}, "--hires-steps must be 1 to 1000"),
        ({"hires_steps": 50, "hires_strength": 0.01}, "use 0.05 or more"),
        ({"hires": None, "hires_steps": 5}, "--hires-steps does nothing without --hires"),
        ({"hires": None, "hires_upscaler": "lanczos"}, "does nothing without --hires"),
        ({"hires_upscaler": "best"}, "'best' is not known"),
    ],
)
def test_what_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(JobError, match=message):
        replace(ASKED, **fields).validate()  # type: ignore[arg-type]
