"""Runs of many jobs: files, matrices, names; killed at any moment and gone on with."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from ldm.checkpoints.weights.header import Header, read_header
from ldm.cli.app import run
from ldm.cli.flags import spread
from ldm.errors import WorkersLost
from ldm.images.texts import read_record
from ldm.nn.unet import UNetModel
from ldm.workers.pool import Engines, Outcome
from tests.tiny_runs import QUICK, SAMPLES, contents, draw, forks, jobs_of
from tests.tiny_runs import home as home


def planned(capfd: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    capfd.readouterr()
    assert draw("--dry-run", "--json", *words) == 0
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def test_every_row_is_a_job(home: Path) -> None:
    (home / "jobs.txt").write_text("a\nb --s 2 --d 9\n# no\n--prompt c --f named\nd --n_iter 2\n")
    assert draw("--from-file", "jobs.txt", "--seed", "5") == 0
    assert jobs_of(home / SAMPLES) == [("a", 5, 1), ("b", 9, 2), ("d", 8, 1), ("d", 9, 1)]
    assert (home / "outputs/txt2img-samples/named.png").is_file()
    lines = (home / "outputs/txt2img-samples/manifest.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    assert [line["path"] for line in told][2] == "named.png"
    digest = hashlib.sha256((home / SAMPLES / "00000.png").read_bytes()).hexdigest()
    assert told[0]["sha256"] == digest


def test_bare_prompts_are_one_job(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (home / "a.csv").write_text("prompt\na\nb\nc\n")
    assert draw("--from-file", "a.csv", "--seed", "5", "--n_samples", "2", "--prompt", "x") == 0
    assert "--prompt is ignored" in capfd.readouterr().err
    records = [read_record(path) for path in sorted((home / SAMPLES).glob("*.png"))]
    assert [record.job.prompts for record in records] == [("a", "b"), ("a", "b"), ("c",)]


def test_what_jobs_share_is_read_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def count(path: Path) -> Header:
        read.append(path)
        return read_header(path)

    monkeypatch.setattr("ldm.checkpoints.locate.read_header", count)
    (home / "a.csv").write_text("prompt,steps\na,1\nb,2\nc,1\n")
    assert draw("--from-file", "a.csv", "--dry-run") == 0
    assert len(read) == 1
    yaml = home / "models/tiny.yaml"
    yaml.write_text(yaml.read_text().replace("model:", "modell:", 1))
    assert draw("--from-file", "a.csv", "--dry-run") == 2
    (home / "models/tiny.ckpt").write_bytes(b"something else")
    assert draw("--from-file", "a.csv", "--dry-run") == 2
    assert len(read) == 2


def test_jobs_are_drawn_together_without_a_change(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"{word},{seed},{1 + seed % 3},{1 + seed // 7}" for seed, word in enumerate("abcdabcd")]
    (home / "jobs.csv").write_text("prompt,seed,scale,steps\n" + "\n".join(rows))
    calls: list[int] = []
    forward = UNetModel.forward

    def count(self: UNetModel, x: Tensor, *rest: Any) -> Tensor:
        calls.append(len(x))
        return forward(self, x, *rest)

    monkeypatch.setattr(UNetModel, "forward", count)
    assert draw("--from-file", "jobs.csv", "--batch-size", "1", "--outdir", "one") == 0
    assert max(calls) == 2
    assert draw("--from-file", "jobs.csv", "--outdir", "many") == 0
    assert contents(home / "one") == contents(home / "many")
    assert len(contents(home / "one")) == 9
    calls.clear()
    assert draw("--from-file", "jobs.csv", "--batch-size", "3", "--outdir", "three") == 0
    assert max(calls) == 6
    assert draw("--prompt", "x", "--batch-size", "0") == 2


def test_a_job_fails_alone(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (home / "good.csv").write_text("prompt,seed,scale\na,1,3\nb,2,3\nc,3,3\n")
    (home / "bad.csv").write_text("prompt,seed,scale\na,1,3\nx,9,1e38\nb,2,3\nc,3,3\n")
    assert draw("--from-file", "good.csv", "--outdir", "good") == 0
    for size in ("1", "4"):
        words = ["--batch-size", size, "--keep-going", "--outdir", f"bad{size}"]
        assert draw("--from-file", "bad.csv", *words) == 3
        assert "bad.csv, line 3" in capfd.readouterr().err
        assert jobs_of(home / f"bad{size}/samples") == [("a", 1, 1), ("b", 2, 1), ("c", 3, 1)]
    assert contents(home / "bad1") == contents(home / "good")


def test_a_matrix(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan = planned(capfd, "--prompt", "x", "--matrix", "steps=1,2", "scale=1,3", "--seed", "4")
    assert [(row["steps"], row["scale"], row["seed"]) for row in plan] == [
        (1, 1.0, 4),
        (1, 3.0, 4),
        (2, 1.0, 4),
        (2, 3.0, 4),
    ]
    assert [row["path"] for row in plan] == [f"{SAMPLES}/0000{n}.png" for n in range(4)]
    assert not (home / "outputs").exists()
    assert draw("--prompt", "x", "--matrix", "stps=1") == 2
    assert "did you mean steps?" in capfd.readouterr().err


def test_choices_in_prompts(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "{a|b} {e$$1|2}", "--n_samples", "3", "--seed", "7"]
    prompts = [row["prompt"] for row in planned(capfd, *words, "--expand")]
    assert [prompt[2] for prompt in prompts] == ["1", "2"] * 3
    assert [row["prompt"] for row in planned(capfd, *words)] == ["{a|b} {e$$1|2}"] * 3


def test_names(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "a/b", "--n_samples", "2", "--seed", "3", "-o", "out/{seed}-{prompt}.png"]
    assert draw(*words) == 0
    assert capfd.readouterr().out.splitlines() == ["out/3-a_b.png", "out/4-a_b.png"]
    before = contents(home)
    assert draw(*words) == 2
    assert "the file exists" in capfd.readouterr().err
    assert draw(*words, "--resume") == 0
    assert "2 of 2 images existed already" in capfd.readouterr().err
    assert contents(home) == before
    assert draw("--prompt", "x", "--n_samples", "2", "-o", "{prompt}.png") == 2
    assert "put {index} into the name" in capfd.readouterr().err
    assert draw("--prompt", "x", "-o", "{sed}.png") == 2
    assert "did you mean seed?" in capfd.readouterr().err


def test_bad_rows(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (home / "a.csv").write_text("prompt,steps,width\na,1,\nb,many,\nc,2,0\nd,2,\n")
    assert draw("--from-file", "a.csv") == 2
    assert "a.csv, line 3, column 2: steps must be a whole number" in capfd.readouterr().err
    assert not (home / "outputs").exists()
    assert draw("--from-file", "a.csv", "--keep-going") == 3
    told = capfd.readouterr()
    assert len(told.out.splitlines()) == 3  # two images and their grid
    assert "a.csv, line 4: --width must be 1 or more" in told.err


def test_a_drawn_seed_is_that_of_the_resumed_run(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--prompt", "x", "--n_iter", "3", "--skip_grid"]
    assert draw(*words) == 0
    before = contents(home)
    for name in ("00002.png", "00001.png", "00000.png"):
        (home / SAMPLES / name).unlink()
        assert draw(*words, "--resume") == 0
        assert contents(home) == before, name


def test_lost_workers_are_reported_with_what_was_finished(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Engines.generated

    def broken(*given: Any) -> Iterator[Outcome]:
        yield from islice(whole(*given), 2)
        raise WorkersLost("workers died 3 times")

    monkeypatch.setattr(Engines, "generated", broken)
    assert draw("--prompt", "x", "--n_iter", "3") == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last == f"ldm: error: workers died 3 times; 2 of 3 images are in {SAMPLES}"


def test_a_stream_goes_on(home: Path) -> None:
    words = ["--prompt", "x", "--n_iter", "3", "--noise", "stream", "--seed", "2", "--eta", "1"]
    assert draw(*words) == 0
    before = contents(home)
    folder = home / "outputs/txt2img-samples"
    for names in (
        [],
        ["grid-0000.png"],
        ["samples/00002.png"],
        ["samples/00002.png", "grid-0000.png", "manifest.jsonl"],
    ):
        for name in names:
            (folder / name).unlink()
        assert draw(*words, "--resume") == 0
        assert contents(home) == before, names


def test_scripts_take_none_of_it(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["txt2img", *QUICK, "--prompt", "x", "--dry-run"], script=True) == 2
    assert "--dry-run goes with the commands of ldm" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "spread_out"),
    [
        (["--m", "a=1", "b=2", "-q"], ["--m", "a=1", "--m", "b=2", "-q"]),
        (["--m", "a=1", "b", "c=1"], ["--m", "a=1", "b", "c=1"]),
        (["a=1", "--m", "a=1", "--m", "b=1"], ["a=1", "--m", "a=1", "--m", "b=1"]),
        (["--m", "a=1", "--", "b=1"], ["--m", "a=1", "--", "b=1"]),
    ],
)
def test_words_of_a_matrix(words: list[str], spread_out: list[str]) -> None:
    assert spread(words, "--m") == spread_out


# --- killed ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_killed_at_any_moment_and_gone_on_with(tmp_path: Path) -> None:
    assert forks(tmp_path / "whole", [0], []) == [0]
    moments = random.Random(1).sample(range(1, 16), 3)
    assert forks(tmp_path / "killed", [*moments, 0], ["--resume"]) == [-9, -9, -9, 0]
    whole = contents(tmp_path / "whole" / "outputs")
    assert len(whole) == 6  # five images and their grid
    assert contents(tmp_path / "killed" / "outputs") == whole
