"""The labelled sheet of a matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.runs.sheet import MARGIN, SIZE, label, sheet
from tests.tiny_runs import SAMPLES, contents, draw
from tests.tiny_runs import home as home

OUT = Path("outputs/txt2img-samples")
TOP = SIZE + 2 * MARGIN


def test_labels() -> None:
    assert label({"steps": 20}) == "steps=20"
    assert label({"scale": 7.0}) == "scale=7"
    assert label({"sampler": "dpmpp_2m", "grid": "karras"}) == "sampler=dpmpp_2m, grid=karras"
    assert label({}) == ""


def test_each_image_is_in_its_column_and_row() -> None:
    images = [np.full((32, 48, 3), 10 * n, np.uint8) for n in range(1, 7)]
    table = sheet(images, ["a=1", "a=2", "a=3"], ["b=1", "b=2"])
    assert table.shape[0] == TOP + 2 * 34
    left = table.shape[1] - 3 * 50
    middles = [
        [int(table[TOP + row * 34 + 16, left + column * 50 + 24, 0]) for column in range(3)]
        for row in range(2)
    ]
    assert middles == [[10, 30, 50], [20, 40, 60]]
    # Something is written above each column and beside each row, and nothing in the corner.
    for column in range(3):
        assert table[:TOP, left + column * 50 : left + column * 50 + 48].min() < 128
    for row in range(2):
        assert table[TOP + row * 34 : TOP + row * 34 + 32, :left].min() < 128
    assert table[:TOP, :left].min() == 255


def test_long_labels_are_cut() -> None:
    table = sheet([np.zeros((16, 16, 3), np.uint8)], ["prompt=" + "w" * 500], ["x" * 500])
    assert table.shape[1] < 300


def test_a_matrix_as_a_table(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "x", "--seed", "1", "--grid-xy", "--matrix", "steps=1,2", "scale=1,3,5"]
    assert draw(*words) == 0
    path = home / OUT / "xy-0000.png"
    assert capfd.readouterr().out.splitlines()[-1] == str(OUT / "xy-0000.png")
    with Image.open(path) as image:
        table = np.asarray(image)
    left, top = table.shape[1] - 2 * 18, TOP
    for place in range(6):
        column, row = divmod(place, 3)
        with Image.open(home / SAMPLES / f"{place:05d}.png") as image:
            alone = np.asarray(image)
        y, x = top + row * 18, left + column * 18
        assert np.array_equal(table[y : y + 16, x : x + 16], alone)
    before = contents(home / OUT)
    assert draw(*words, "--resume") == 0
    assert contents(home / OUT) == before
    assert draw("--prompt", "x", "--grid-xy") == 2
    assert "--grid-xy needs --matrix" in capfd.readouterr().err
    assert draw(*words, "--n_samples", "2") == 2
    assert "one image for each combination" in capfd.readouterr().err
