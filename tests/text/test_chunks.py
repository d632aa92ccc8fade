"""Packing tokens into chunks, by hand: a token a word, and a comma is a word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ldm.text.chunks import Token, chunked, rows
from ldm.text.tokenizer import Tokenizer, Tokens, clip_tokenizer, open_clip_tokenizer
from ldm.text.wordpiece import BertTokenizer

COMMA = 0


class Words(Tokenizer):
    """Numbers are their own ids, a comma is 0, and other words are 99."""

    def split(self, text: str) -> Tokens:
        found = list(re.finditer(r",|[^\s,]+", text))
        ids = [0 if m[0] == "," else int(m[0]) if m[0].isdigit() else 99 for m in found]
        return Tokens(text, ids, [m.span() for m in found], list(range(len(found))))


def ids(text: str, room: int = 75, syntax: str = "a1111") -> list[list[int]]:
    return [[t.id for t in chunk] for chunk in chunked(text, Words(), room, syntax).chunks]


def words(*ranges: tuple[int, int]) -> str:
    """Numbers of ranges, a comma after each range but the last."""
    return ", ".join(" ".join(map(str, range(*each))) for each in ranges)


def test_a_short_prompt_is_one_chunk() -> None:
    assert ids("") == [[]]
    assert ids("1 2 , 3") == [[1, 2, 0, 3]]
    assert ids(words((1, 76))) == [list(range(1, 76))]


def test_a_long_prompt_is_cut_in_full_chunks() -> None:
    assert ids(words((1, 77))) == [list(range(1, 76)), [76]]
    assert ids(words((1, 160))) == [
        list(range(1, 76)),
        list(range(76, 151)),
        list(range(151, 160)),
    ]


@pytest.mark.parametrize(
    ("before", "moved"),
    [
        (55, True),  # the comma is the 20th token from the end
        (54, False),  # and here the 21st
        (73, True),
        (74, True),  # the comma is the last one; nothing has to move
    ],
)
def test_what_follows_a_near_comma_goes_into_the_next_chunk(before: int, moved: bool) -> None:
    first, second = ids(words((1, before + 1), (101, 140)))
    end = before + 1 if moved else 75
    together = [*range(1, before + 1), COMMA, *range(101, 140)]
    assert (first, second) == (together[:end], together[end:])


def test_the_last_comma_counts() -> None:
    first, second = ids(words((1, 60), (101, 106), (201, 240)))
    assert first == [*range(1, 60), COMMA, *range(101, 106), COMMA]
    assert second == list(range(201, 240))


def test_a_comma_that_comes_next_begins_a_chunk() -> None:
    """As in the web UI: the chunk is full, and there is nothing to keep together."""
    first, second = ids(words((1, 71), (101, 105), (201, 204)))
    assert first == [*range(1, 71), COMMA, *range(101, 105)]
    assert second == [COMMA, 201, 202, 203]


def test_small_chunks() -> None:
    assert ids(words((1, 7)), room=4) == [[1, 2, 3, 4], [5, 6]]
    assert ids("1 , 2 3 4 5", room=4) == [[1, 0], [2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 BREAK 2", [[1], [2]]),
        ("1 BREAK", [[1]]),
        ("BREAK 1", [[], [1]]),
        ("BREAK", [[]]),
        ("1 BREAK BREAK 2", [[1], [], [2]]),
        ("(1 BREAK 2:1.5)", [[1], [2]]),
        (f"{words((1, 80))} BREAK 90", [list(range(1, 76)), list(range(76, 80)), [90]]),
    ],
)
def test_a_break_ends_a_chunk(text: str, expected: list[list[int]]) -> None:
    assert ids(text) == expected


def test_weights_go_with_their_tokens() -> None:
    found = chunked("a (1 2:1.5) [3]", Words(), 3)
    assert found.chunks == [
        [Token(99, 1.0, "a"), Token(1, 1.5, "1"), Token(2, 1.5, "2")],
        [Token(3, 1 / 1.1, "3")],
    ]
    assert (found.count, found.cut) == (4, "")
    assert found.filled(3) == [*found.chunks, []]


def test_plain_syntax_cuts_and_tells() -> None:
    found = chunked("(1 BREAK 2 3", Words(), 3, "plain")
    assert [[t.id for t in chunk] for chunk in found.chunks] == [[99, 99, 2]]
    assert {t.weight for t in found.chunks[0]} == {1.0}
    assert found.cut == "3"


def test_rows_have_start_end_and_padding() -> None:
    chunks = chunked("(5:2) 6 BREAK", Words(), 3).filled(2)
    start, end = Words.start, Words.end
    assert rows(chunks, Words(), 7, 5) == (
        [[start, 5, 6, end, 7], [start, end, 7, 7, 7]],
        [[1.0, 2.0, 1.0, 1.0, 1.0], [1.0] * 5],
    )


@pytest.mark.parametrize("make", [clip_tokenizer, open_clip_tokenizer])
@pytest.mark.parametrize("text", ["", "A red  apple, on a blue background!", "🐱 é <b>"])
def test_a_prompt_without_marks_gives_the_row_it_always_gave(
    make: type[Tokenizer], text: str
) -> None:
    tokenizer = make()
    for syntax in ("a1111", "comfy", "weights", "plain"):
        found = chunked(text, tokenizer, 75, syntax)
        assert rows(found.chunks, tokenizer, 7, 77)[0] == tokenizer.batch([text], 7)[0]


def test_real_tokenizers_find_their_comma(tmp_path: Path) -> None:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", ",", "b"]
    (tmp_path / "vocab.txt").write_text("\n".join(names))
    text = "a " * 70 + ", " + "b " * 9
    for tokenizer in (
        clip_tokenizer(),
        open_clip_tokenizer(),
        BertTokenizer(tmp_path / "vocab.txt"),
    ):
        found = chunked(text, tokenizer, 75)
        assert [len(chunk) for chunk in found.chunks] == [71, 9]
        assert [token.text for token in found.chunks[0][-2:]] == ["a", ","]
