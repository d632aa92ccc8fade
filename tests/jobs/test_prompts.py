"""Prompts that ask for adapters, or are written for another program."""

from __future__ import annotations

import pytest

from ldm.errors import JobError
from ldm.jobs.job import Job
from ldm.jobs.prompts import hints


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("a cat <lora:foo:0.8>", "a LoRA, '<lora:foo:0.8>'"),
        ("<LoRA:foo>, a cat", "a LoRA"),
        ("<lyco:foo:1>", "a LyCORIS network"),
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


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a ball++ and a bat", "compel"),
        ("(a red ball)++", "compel"),
        ('("a cat", "a dog").and()', "compel"),
        ('("a", "b").blend(0.5, 0.5)', "compel"),
        ("a screen of 16:9", ":9, which is read as its weight"),
    ],
)
def test_hints(text: str, word: str) -> None:
    [hint] = hints(text, "a1111")
    assert word in hint
    assert hints(text, "plain") == []


@pytest.mark.parametrize("text", ["a cat :1.2 AND a dog :0.5", "(a cat:1.2)", "x - y", "a -- b"])
def test_no_hint_where_it_is_meant(text: str) -> None:
    assert hints(text, "a1111") == []
