from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import ImageError, JobError
from ldm.jobs.inputs import Sides, digest, expand_inputs, kind, parse_outpaint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images by their names alone; nothing here looks into a file."""
    for name in ("b.png", "a.JPG", "c.webp", "notes.txt", ".hidden.png", "deep/d.png", "x[1].png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_a_folder_stands_for_its_images(folder: Path) -> None:
    assert names(expand_inputs([str(folder)])) == ["a.JPG", "b.png", "c.webp", "x[1].png"]


def test_a_pattern_stands_for_what_it_matches(folder: Path) -> None:
    assert names(expand_inputs([f"{folder}/*.png"])) == ["b.png", "x[1].png"]
    assert names(expand_inputs([f"{folder}/[ab].*"])) == ["a.JPG", "b.png"]
    assert names(expand_inputs([f"{folder}/**/?.png"])) == ["b.png", "d.png"]


def test_a_file_is_taken_whatever_its_name(folder: Path) -> None:
    given = [f"{folder}/x[1].png", f"{folder}/notes.txt"]
    assert [str(path) for path in expand_inputs(given)] == given


def test_the_order_is_the_users_and_nothing_comes_twice(folder: Path) -> None:
    given = [f"{folder}/c.webp", f"{folder}/*.png", str(folder)]
    assert names(expand_inputs(given)) == ["c.webp", "b.png", "x[1].png", "a.JPG"]


def test_home_in_a_quoted_pattern(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    assert names(expand_inputs(["~/b*.png"])) == ["b.png"]


def test_relative_names_stay_relative(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert expand_inputs(["b.png", "deep"]) == [Path("b.png"), Path("deep/d.png")]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("none.png", "no such file"),
        ("*.bmp", "nothing matches"),
        ("*.txt", "no image"),
        ("empty", "no image"),
        ("", "an image has an empty name"),
    ],
)
def test_a_name_that_stands_for_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, given: str, words: str
) -> None:
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(ImageError, match=words):
        expand_inputs(["b.png", given])


def test_no_name_at_all() -> None:
    with pytest.raises(ImageError, match="no input image"):
        expand_inputs([])


def test_a_folder_that_may_not_be_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(ImageError, match="Permission denied"):
        expand_inputs([str(folder)])


def test_a_digest_is_of_the_bytes(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    assert digest(path) == hashlib.sha256(content).hexdigest()[:16]
    assert digest(str(path)) == digest(path)
    with pytest.raises(ImageError, match="no such file"):
        digest(tmp_path / "none")


@given(st.binary(max_size=600))
def test_every_file_has_a_kind(head: bytes) -> None:
    assert kind(head)


def test_text_that_is_cut_inside_a_character_is_text() -> None:
    for length in range(9, 40):
        assert kind("日本語のテキスト。これは文章".encode()[:length]) == "text"


@given(*[st.integers(0, 512)] * 4)
def test_sides_are_read(left: int, top: int, right: int, bottom: int) -> None:
    if left + top + right + bottom:
        assert parse_outpaint(f"{left}, {top},{right},{bottom}") == (left, top, right, bottom)


def test_sides_have_names() -> None:
    assert parse_outpaint("1,2,3,4") == Sides(left=1, top=2, right=3, bottom=4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "four whole numbers"),
        ("64", "four whole numbers"),
        ("1,2,3", "four whole numbers"),
        ("1,2,3,4,5", "four whole numbers"),
        ("1,2,3,", "four whole numbers"),
        ("1,2,3,4px", "four whole numbers"),
        ("1.5,2,3,4", "four whole numbers"),
        ("0,0,-8,0", "0 to 8192"),
        ("0,0,8193,0", "0 to 8192"),
        ("0,0,0,0", "adds nothing"),
    ],
)
def test_sides_that_mean_nothing(text: str, words: str) -> None:
    with pytest.raises(JobError, match=words) as caught:
        parse_outpaint(text)
    assert str(caught.value).startswith("--outpaint")
    assert "\n" not in str(caught.value)
