"""Prompt editing, alternation and AND, against what AUTOMATIC1111's web UI makes of 39 prompts."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.text.prompt import parse
from ldm.text.schedule import Part, Stretch, split_and, stretches
from tests.golden_data import GOLDEN

CASES = json.loads((GOLDEN / "prompts/a1111.json").read_text(encoding="utf-8"))["cases"]
every_case = pytest.mark.parametrize("case", CASES, ids=[case["prompt"] for case in CASES])


@every_case
def test_the_parts_are_those_of_the_web_ui(case: dict[str, Any]) -> None:
    expected = [Part(part["text"], part["weight"]) for part in case["parts"]]
    assert split_and(case["prompt"]) == expected


@every_case
def test_the_texts_change_when_those_of_the_web_ui_do(case: dict[str, Any]) -> None:
    for part in case["parts"]:
        for steps, entries in part["schedules"].items():
            found = stretches(part["text"], int(steps))
            for entry in entries:
                text = next(x.text for x in found if entry["until_step"] <= x.until)
                assert text == entry["text"]
            assert {x.until for x in found} <= {entry["until_step"] for entry in entries}


@every_case
def test_the_weights_are_those_of_the_web_ui(case: dict[str, Any]) -> None:
    entries = [e for part in case["parts"] for found in part["schedules"].values() for e in found]
    for entry in entries:
        pieces = [list(part) for part in parse(entry["text"])]
        if entry["attention"] is None:  # it stops with an error there
            assert pieces == [list(part) for part in parse("(a:1.2.3)")]
            continue
        ours = [
            (piece.text.strip(), pytest.approx(piece.weight)) for part in pieces for piece in part
        ]
        theirs = [(text.strip(), weight) for text, weight in entry["attention"] if text != "BREAK"]
        empty = ("", 1.0)
        assert [x for x in ours if x != empty] == [x for x in theirs if x != empty]


def test_steps_of_the_second_pass_of_hires_fix() -> None:
    """As of version 1.6: counts go on from the first pass, and shares from 1."""
    assert stretches("[a:b:0.5]", 10, 20) == [Stretch(10, "b")]
    assert stretches("[a:b:20]", 10, 20) == [Stretch(10, "b")]
    assert stretches("[a:b:25]", 10, 20) == [Stretch(5, "a"), Stretch(10, "b")]
    assert stretches("[a:b:1.5]", 10, 20) == [Stretch(5, "a"), Stretch(10, "b")]
    assert stretches("[a:b:40]", 10, 20) == [Stretch(10, "a")]
    assert stretches("[a:b:1.5]", 20, has_second_pass=True) == [Stretch(20, "a")]
    assert stretches("[a:b:0.5]", 20, has_second_pass=True)[0] == Stretch(10, "a")


def test_a_space_may_follow_the_number() -> None:
    assert stretches("[a : b : 0.5 ]", 10) == [Stretch(5, "a "), Stretch(10, " b ")]


@given(st.text("ab[]():|\\ 0.5AND"))
def test_any_text_can_be_read(text: str) -> None:
    for part in split_and(text):
        found = stretches(part.text, 10)
        assert found[-1].until == 10
        assert [x.until for x in found] == sorted(x.until for x in found)


@pytest.mark.parametrize("text", ["[" * 30_000, "[a:" * 20_000, "(" * 500 + "[a:b:1]" + ")" * 500])
def test_many_brackets_take_no_time(text: str) -> None:
    start = time.process_time()
    stretches(text, 10)
    assert time.process_time() - start < 2
