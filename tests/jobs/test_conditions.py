"""Sizes, crops and scores: how they are written, and what they are without being given."""

from __future__ import annotations

import pytest

from ldm.errors import JobError
from ldm.jobs.conditions import numbers_of
from ldm.jobs.job import Job


def test_the_images_own_size_and_the_usual_scores() -> None:
    prompt, negative = numbers_of(Job(prompt="x"), (1152, 896))
    assert prompt == {
        "original_size_as_tuple": (896, 1152),
        "crop_coords_top_left": (0, 0),
        "target_size_as_tuple": (896, 1152),
        "aesthetic_score": (6.0,),
    }
    assert negative == {**prompt, "aesthetic_score": (2.5,)}


def test_given_ones() -> None:
    job = Job(
        prompt="x", original_size="512x768", crop="8,16", target_size="64x32", aesthetic_score=7.5
    )
    job.validate()
    prompt, _ = numbers_of(job, (1, 1))
    assert prompt["original_size_as_tuple"] == (768, 512)
    assert prompt["crop_coords_top_left"] == (16, 8)
    assert prompt["target_size_as_tuple"] == (32, 64)
    assert prompt["aesthetic_score"] == (7.5,)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"original_size": "512"}, "--original-size must be a size like 1024x768"),
        ({"target_size": "0x64"}, "--target-size must be a size like 1024x768"),
        ({"crop": "3"}, "--crop must be LEFT,TOP"),
        ({"aesthetic_score": 11.0}, "--aesthetic-score must be 0 to 10"),
        ({"unconditional": "zeros", "negative": "x"}, "leaves no room for a negative prompt"),
    ],
)
def test_bad_ones(fields: dict[str, object], message: str) -> None:
    with pytest.raises(JobError, match=message):
        Job(prompt="x", **fields).validate()  # type: ignore[arg-type]
