"""The grammar of prompts: hand-written cases, and examples that the web UI documents."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import JobError
from ldm.text.prompt import Piece, parse

LESS = 1 / 1.1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("a [minor] word", [("a ", 1), ("minor", LESS), (" word", 1)]),
        ("a (heavy:1.3) word", [("a ", 1), ("heavy", 1.3), (" word", 1)]),
        ("(x: 1.3 ), (y:.5)(z:2.)", [("x", 1.3), (", ", 1), ("y", 0.5), ("z", 2)]),
        ("(x:-1)(y:+2)(z:0)", [("x", -1), ("y", 2), ("z", 0)]),
        ("((x))", [("x", 1.1 * 1.1)]),
        ("[[x]]", [("x", LESS * LESS)]),
        ("([x])", [("x", LESS * 1.1)]),
        ("(a (b:2) c:3)", [("a ", 3), ("b", 6), (" c", 3)]),
        ("(a:b:2)", [("a:b", 2)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("()[]((:2))", []),
        # Not closed: to the end of the prompt.
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("a (b [c", [("a ", 1), ("b ", 1.1), ("c", 1.1 * LESS)]),
        ("(a (b:2) c", [("a ", 1.1), ("b", 2.2), (" c", 1.1)]),
        # Not opened, or no weight: plain characters.
        ("a) b] c:1.3)", [("a) b] c:1.3)", 1)]),
        ("[x:1.3]", [("x:1.3", LESS)]),
        ("(x:1.2.3)(y:)(z:a)", [("x:1.2.3y:z:a", 1.1)]),
        ("ratio 16:9, :)", [("ratio 16:9, :)", 1)]),
        # The two kinds of brackets do not know of each other.
        ("(a [b) c] d", [("a ", 1.1), ("b", 1.1 * LESS), (" c", LESS), (" d", 1)]),
        # Escapes; a backslash before anything else is itself.
        (r"\(literal\]", [("(literal]", 1)]),
        (r"\[x\) \\(y)", [("[x) " + "\\", 1), ("y", 1.1)]),
        (r"(a\):2)", [("a)", 2)]),
        (r"¯\_(ツ)_/¯ C:\x", [("¯_", 1), ("ツ", 1.1), ("_/¯ C:x", 1)]),
        # Braces, bars and angles have no meaning.
        ("{x} [a|b] <y:1>", [("{x} ", 1), ("a|b", LESS), (" <y:1>", 1)]),
    ],
)
def test_weights(text: str, expected: list[tuple[str, float]]) -> None:
    [pieces] = parse(text)
    assert [piece.text for piece in pieces] == [words for words, _ in expected]
    assert [piece.weight for piece in pieces] == pytest.approx([weight for _, weight in expected])


def test_the_web_ui_s_own_example_to_the_bit() -> None:
    assert parse("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).") == [
        [
            Piece("a "),
            Piece("house", 1.5730000000000004),
            Piece(" ", 1.1),
            Piece("on"),
            Piece(" a ", 1.1),
            Piece("hill", 0.55),
            Piece(", sun, ", 1.1),
            Piece("sky", 1.4641000000000006),
            Piece(".", 1.1),
        ]
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a BREAK b", [["a "], [" b"]]),
        ("BREAK", [[], []]),
        ("a BREAKBREAK", [["a BREAKBREAK"]]),
        ("break, BREAKS, _BREAK, Break", [["break, BREAKS, _BREAK, Break"]]),
        ("a,BREAK,b", [["a,"], [",b"]]),
        ("a BREAK BREAK b", [["a "], [" "], [" b"]]),
    ],
)
def test_breaks(text: str, expected: list[list[str]]) -> None:
    assert [[piece.text for piece in part] for part in parse(text)] == expected


def test_a_weight_reaches_over_a_break() -> None:
    assert parse("a (b BREAK c:2) d") == [
        [Piece("a "), Piece("b ", 2)],
        [Piece(" c", 2), Piece(" d")],
    ]


@given(st.text(alphabet=st.characters(exclude_characters="()[]\\")))
def test_a_prompt_without_marks_is_one_piece(text: str) -> None:
    if "BREAK" not in text:
        assert parse(text) == [[Piece(text)] if text else []]


@given(st.text())
def test_in_plain_syntax_nothing_is_a_mark(text: str) -> None:
    assert parse(text, "plain") == [[Piece(text)] if text else []]


@given(st.text())
def test_escaping_all_marks_gives_the_text_back(text: str) -> None:
    text = text.replace("BREAK", "")
    escaped = "".join("\\" + char if char in "()[]\\" else char for char in text)
    assert "".join(piece.text for piece in parse(escaped)[0]) == text


def test_weights_beyond_all_numbers_are_an_error() -> None:
    with pytest.raises(JobError, match="fewer brackets"):
        parse("(" * 8000 + "x")
    with pytest.raises(JobError, match="overflows"):
        parse(f"(x:{'9' * 400})")


def test_earlier_records_keep_a_lone_backslash() -> None:
    assert parse(r"C:\x \(y", "weights") == [[Piece(r"C:\x (y")]]
    assert parse(r"C:\x \(y") == [[Piece("C:x (y")]]
