"""Names from templates, safe on every file system."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.errors import JobError
from ldm.jobs.job import Job
from ldm.jobs.templates import FIELDS, LONGEST, check_names, parse, safe, values_of


def values(**given: Any) -> dict[str, Any]:
    job = Job(prompt="a cat, 1/2", width=64, height=32, steps=5, scale=7.5, sampler="ddim", seed=3)
    return values_of(job, 0, index=7, number=2, model="emoji-128") | given


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{index:05d}-{seed}-{prompt:.5}.png", "00007-3-a_cat.png"),
        ("out/%03d.png", "out/007.png"),
        ("%d_100%.png", "7_100%.png"),
        ("{{x}}-{job}-{width}x{height}.png", "{x}-2-64x32.png"),
        ("{task}/{model}/{sampler}{steps}-{scale:.1f}.png", "txt2img/emoji-128/ddim5-7.5.png"),
        ("{strength}{negative}{input}.png", ".png"),
        ("../{prompt}.png", "../a_cat,_1_2.png"),
        ("/tmp/{seed}.png", "/tmp/3.png"),
    ],
)
def test_names(template: str, name: str) -> None:
    assert parse(template).name(values()) == Path(name)


def test_every_field_has_a_value() -> None:
    assert set(values()) == set(FIELDS)
    job = Job(init_img="in/dog.jpg", prompts=("a", "b"), n_samples=2, seed=4)
    told = values_of(job, 1, index=0, number=0, model="m")
    assert (told["input"], told["prompt"], told["seed"]) == ("dog", "b", 5)


def test_fields_and_folder() -> None:
    assert parse("a/b/x-{seed}.png").folder == Path("a/b")
    assert parse("a/{task}/x.png").folder == Path("a")
    assert parse("a/x.png").folder == Path("a")
    assert parse("{seed}.png").folder == Path(".")
    assert parse("a.png").fields == set()
    assert parse("%02d-{prompt}.png").fields == {"index", "prompt"}


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{sed}.png", "unknown field {sed}; did you mean seed? (known: index, "),
        ("\ud800.png", "contains half of a character"),
        ("{}.png", "unknown field {}"),
        ("{seed.__class__}.png", "unknown field {seed.__class__}"),
        ("{seed!r}.png", "needs a plain format"),
        ("{seed:{index}}.png", "needs a plain format"),
        ("{seed.png", "double a brace to use it literally"),
        ("seed}.png", "double a brace to use it literally"),
        ("{prompt:d}.png", "{prompt:d}:"),
        ("{scale:d}.png", "{scale:d}:"),
        ("{seed:.2q}.png", "{seed:.2q}:"),
    ],
)
def test_what_is_wrong(template: str, words: str) -> None:
    with pytest.raises(JobError) as caught:
        parse(template)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a  cat\n", "a_cat"),
        ("../../etc/passwd", "etc_passwd"),
        ("C:\\x?*", "C_x"),
        ("-rf .hidden.", "rf_.hidden"),
        ("Hündchen 🐶", "Hündchen_🐶"),
        ("u\u0308", "ü"),
        ("a\u202eb\u200b\0c", "ab_c"),
        ("///", ""),
    ],
)
def test_safe(text: str, name: str) -> None:
    assert safe(text) == name


@pytest.mark.parametrize("text", ["con", "NUL", "com1", "lpt9", "Con.txt"])
def test_names_that_windows_keeps(text: str) -> None:
    assert parse("{prompt}.png").name(values(prompt=text)) == Path(f"_{text}.png")


@settings(max_examples=80)
@given(st.text(max_size=300))
def test_no_prompt_leaves_its_folder(prompt: str) -> None:
    path = parse("out/{prompt}-{index:03d}.png").name(values(prompt=prompt))
    assert path.parts[0] == "out"
    assert len(path.parts) == 2
    name = path.name
    assert name.endswith("-007.png")
    assert len(name.encode()) <= LONGEST
    assert not set(name) & set('<>:"/\\|?*\0\n ')
    assert not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name)


def test_a_long_text_is_cut_and_long_words_are_an_error() -> None:
    name = parse("{prompt}-{seed}.png").name(values(prompt="ü" * 400)).name
    assert name.endswith("ü-3.png")
    assert LONGEST - 2 <= len(name.encode()) <= LONGEST
    with pytest.raises(JobError, match="exceeds 143 bytes"):
        parse("a" * 140 + "{seed}.png").name(values())


def test_two_of_one_name_and_what_is_there(tmp_path: Path) -> None:
    check_names([tmp_path / "a.png", tmp_path / "b.png"], overwrite=False)
    with pytest.raises(JobError, match=r"two images would be .*A.png; put \{index\}"):
        check_names([tmp_path / "a.png", tmp_path / "A.png"], overwrite=True)
    (tmp_path / "a.png").touch()
    with pytest.raises(JobError, match="add --overwrite"):
        check_names([tmp_path / "a.png"], overwrite=False)
    check_names([tmp_path / "a.png"], overwrite=True)
