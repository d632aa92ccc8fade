"""T5's tokens are Google's, for every kind of text."""

from __future__ import annotations

import pytest

from ldm.text.sentencepiece import t5_tokenizer
from tests.golden_data import case

CASES = case("modules/text-sd3-tokens/case.json")["cases"]
# Names of special tokens are text here.
PLAIN = [one for one in CASES if "<extra_id" not in one["prompt"]]


@pytest.mark.parametrize("one", PLAIN, ids=lambda one: one["prompt"][:20])
def test_tokens(one: dict[str, object]) -> None:
    expected = one["t5_whole_prompt_256"]
    assert isinstance(expected, list)
    ids, cut = t5_tokenizer().encode(str(one["prompt"]), 256)
    assert ids == expected + [0] * (256 - len(expected))
    assert cut == ""


def test_what_is_too_long_is_cut() -> None:
    ids, cut = t5_tokenizer().encode("a cat and a dog", 4)
    whole = t5_tokenizer().split("a cat and a dog").ids
    assert ids == [*whole[:3], 1]
    assert cut == "and a dog"
