"""Prompts as ComfyUI reads them, by the rules of its sd1_clip.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import JobError
from ldm.models.encoding import interpolated
from ldm.text.chunks import chunked
from ldm.text.comfy import parse_comfy
from ldm.text.tokenizer import clip_tokenizer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("", []),
        ("a (cat)", [("a ", 1), ("cat", 1.1)]),
        ("a ((cat))", [("a ", 1), ("cat", 1.1 * 1.1)]),
        ("(a (b:1.3) c:0.5)", [("a ", 0.5), ("b", 1.3), (" c", 0.5)]),  # not multiplied
        ("(a (b) c:0.5)", [("a ", 0.5), ("b", 0.5 * 1.1), (" c", 0.5)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1:2)", [("a:1", 2)]),
        ("(:2)", [(":2", 1.1)]),
        (r"\(a\) (b\))", [("(a) ", 1), ("b)", 1.1)]),
        ("[a] BREAK b", [("[a] BREAK b", 1)]),
        ("(open", [("(open", 1)]),
        ("close) (a)", [("close) (a)", 1)]),  # a stray bracket stays open there, too
        ("()", []),
    ],
)
def test_pieces(text: str, expected: list[tuple[str, float]]) -> None:
    assert [(p.text, pytest.approx(p.weight)) for p in parse_comfy(text)] == expected


@given(st.text("ab():\\ 1."))
def test_any_text_can_be_read(text: str) -> None:
    assert all(piece.text for piece in parse_comfy(text))


def test_too_many_brackets() -> None:
    with pytest.raises(JobError, match="200 brackets"):
        parse_comfy("(" * 300 + "a" + ")" * 300)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999"])
def test_a_weight_is_a_number(number: str) -> None:
    with pytest.raises(JobError, match="must be a number"):
        parse_comfy(f"a (cat:{number})")


def lengths(text: str, room: int) -> list[int]:
    return [len(chunk) for chunk in chunked(text, clip_tokenizer(), room, "comfy").chunks]


def test_words_are_not_divided() -> None:
    assert lengths("", 10) == [0]
    assert lengths("cat " * 10, 10) == [10]
    assert lengths("cat " * 11, 10) == [10, 1]
    # "cat," are two tokens of one word
    assert lengths("cat " * 9 + "cat, dog", 10) == [9, 3]
    long = "1234567890"  # ten tokens, from eight on a word may be divided
    assert lengths("cat " * 7 + long, 10) == [10, 7]
    assert lengths("12345", 4) == [4, 1]  # a word that fits into no chunk


def test_weights_move_tokens_from_the_empty_prompt() -> None:
    z, e = torch.tensor([[[3.0], [5.0]]]), torch.tensor([[[1.0], [1.0]]])
    found = interpolated(z, e, torch.tensor([[1.0, 1.5]]))
    assert found.flatten().tolist() == [3.0, 1 + 1.5 * 4]
