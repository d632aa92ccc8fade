"""Prompts that ask for adapters, or are written for another program."""

from __future__ import annotations

import pytest

from ldm.errors import JobError
from ldm.jobs.job import Job
from ldm.text.hints import hints


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("<hypernet:foo:1>", "a hypernetwork"),
        ("a photo, embedding:easynegative, hands", "'embedding:easynegative'"),
        ("(embedding:bad_prompt_v2:1.2)", "a textual inversion embedding"),
    ],
)
@pytest.mark.parametrize("field", ["prompt", "negative"])
def test_adapters_are_refused_by_name(text: str, title: str, field: str) -> None:
    for syntax in ("a1111", "weights"):
        with pytest.raises(JobError, match=title):
            Job(**{"prompt": "x", field: text, "prompt_syntax": syntax}).validate()
    Job(**{"prompt": "x", field: text, "prompt_syntax": "plain"}).validate()


@pytest.mark.parametrize("text", ["a <b> cat", "lora: a name", "the embedding: a drawing", "<3"])
def test_other_words_are_words(text: str) -> None:
    Job(prompt=text).validate()
    assert hints(text, "a1111") == []
