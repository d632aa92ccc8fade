"""Hints about prompts that are written for another program."""

from __future__ import annotations

import pytest

from ldm.text.hints import hints


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a ball++ and a bat", "compel"),
        ("(a red ball)++", "compel"),
        ('("a cat", "a dog").and()', "compel"),
        ('("a", "b").blend(0.5, 0.5)', "compel"),
        ("a screen of 16:9", ":9, which is read as its weight"),
        ("a (red cat:1.5", ":1.5, which is read as its weight"),
        ("a [cat:dog:0.5] | a bird", "a | outside of square brackets"),
    ],
)
def test_hints(text: str, word: str) -> None:
    [hint] = hints(text, "a1111")
    assert word in hint
    assert hints(text, "plain") == []


@pytest.mark.parametrize(
    "text",
    [
        "a cat :1.2 AND a dog :0.5",
        "(a cat:1.2)",
        "x - y",
        "a -- b",
        "[cat|dog] [a:b:3]",
    ],
)
def test_no_hint_where_it_is_meant(text: str) -> None:
    assert hints(text, "a1111") == []
