from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldm.errors import ImageError, JobError
from ldm.images.texts import read_record, read_texts
from ldm.images.writing import encode_png
from ldm.jobs.fields import SAMPLER_ALIASES
from ldm.jobs.job import Job
from ldm.jobs.metadata import Infotext, Record, format_infotext, parse_infotext
from ldm.jobs.sampler_names import SAMPLER_TITLES

JOB = Job(
    prompt="a red apple, on a table",
    negative="blurry",
    width=64,
    height=48,
    steps=20,
    scale=7.0,
    sampler="euler_ancestral",
    seed=965400086,
    n_samples=2,
)
RECORD = Record(JOB, 1, "some, model", "45dee52b")


def lines() -> st.SearchStrategy[str]:
    """One line of prompt that cannot be taken for another part of the text."""
    plain = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=30)
    return plain.map(str.strip).filter(lambda line: not line.startswith("Negative prompt:"))


values = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
keys = st.from_regex(r"[A-Z][a-z]{1,8}( [a-z]{1,5})?", fullmatch=True)


@given(
    st.lists(lines(), min_size=1, max_size=3).map("\n".join).map(str.strip),
    st.lists(lines(), max_size=2).map("\n".join).map(str.strip),
    st.dictionaries(keys, values, min_size=3, max_size=6),
)
def test_an_infotext_is_read_as_it_was_meant(
    prompt: str, negative: str, settings: dict[str, str]
) -> None:
    info = Infotext(prompt, negative, settings)
    assert parse_infotext(format_infotext(info)) == info


def test_the_text_is_the_one_that_other_tools_read() -> None:
    assert RECORD.infotext() == (
        "a red apple, on a table\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400087, Size: 64x48, "
        f'Model hash: 45dee52b, Model: "some, model", RNG: NV, Version: ldm {RECORD.version}'
    )


def test_a_last_line_with_few_pairs_is_prompt() -> None:
    assert parse_infotext("a cat\nsize: big, colour: red") == Infotext(
        "a cat\nsize: big, colour: red"
    )


def test_every_sampler_has_a_title() -> None:
    assert SAMPLER_TITLES.keys() == SAMPLER_ALIASES.keys()


def test_texts_survive_in_a_file(tmp_path: Path) -> None:
    original = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    texts = {"parameters": "ünï 🍎\nSteps: 1", "ldm": RECORD.to_json()}
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(original, texts))
    assert read_texts(path) == texts
    assert read_record(path) == RECORD
    assert encode_png(original, texts) == path.read_bytes()
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), original)


def test_a_file_without_record_says_so(tmp_path: Path) -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    for name, texts, message in (
        ("none.png", {}, "no record"),
        ("other.png", {"parameters": "x"}, "see ldm info"),
        ("bad.png", {"ldm": "[]"}, "not one of ours"),
        ("row.png", {"ldm": RECORD.to_json().replace('"row": 1', '"row": 2')}, "row 2 of 2"),
    ):
        (tmp_path / name).write_bytes(encode_png(image, texts))
        with pytest.raises(ImageError, match=message):
            read_record(tmp_path / name)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ImageError, match="cannot be read as an image"):
        read_record(tmp_path / "text.png")
    with pytest.raises(ImageError, match="no such file"):
        read_record(tmp_path / "absent.png")
    with pytest.raises(JobError, match="unknown field"):
        Record.from_json(RECORD.to_json().replace('"steps"', '"stepz"'))
