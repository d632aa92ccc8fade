"""`--precision int8` from the command line to the image and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ldm.cli.app import run
from ldm.engine.device import computes_in
from ldm.engine.engine import Engine
from ldm.engine.plan import make_plan
from ldm.images.texts import read_record
from ldm.jobs.job import Job
from ldm.nn.quantized import Int8Conv2d, Int8Linear, can_quantize
from ldm.workers.pool import load_engine
from tests.comparing_runs import Count, assert_same, one_by_one

hardware = pytest.mark.skipif(
    not (computes_in("int8") and can_quantize()), reason="no 8-bit arithmetic here"
)
ASKED = {"task": "txt2img", "prompt": "a red apple", "seed": 1, "steps": 2, "device": "cpu"}
WORDS = ["txt2img", "--prompt", "a red apple", "--seed", "1", "--steps", "2", "--quiet"]


def engine(precision: str) -> tuple[Engine, Job]:
    plan = make_plan({**ASKED, "precision": precision})
    made, plan = load_engine(plan, plan.given, lambda event: None)
    return made, plan.job


@hardware
def test_images_are_near_those_in_full_precision() -> None:
    full, rounded = (next(made.run(job)) for made, job in map(engine, ("full", "int8")))
    error = full.image.astype(float) - rounded.image
    assert 0 < np.square(error).mean() < 255**2 * 1e-3  # 30 dB
    assert rounded.record.job.precision == "int8"


@hardware
def test_together_every_image_is_as_alone() -> None:
    ours, job = engine("int8")
    kinds = {type(module) for module in ours.model.network.modules()}
    assert {Int8Conv2d, Int8Linear} <= kinds
    texts = ["a red apple", "a blue car", "two cats", "a tree"]
    jobs = [replace(job, prompt=text, scale=4.0 + i) for i, text in enumerate(texts)]
    theirs = one_by_one(ours, jobs)
    calls = Count(ours.model.network)
    assert_same(list(ours.run_all(jobs)), theirs)
    assert calls.rows[-1] == 2 * len(jobs)  # not only to see whether they agree


@hardware
def test_it_is_recorded_and_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*WORDS, "--device", "cpu", "--precision", "int8", "-o", "a.png"]) == 0
    assert read_record(Path("a.png")).job.precision == "int8"
    assert run(["rerun", "a.png", "-o", "b.png", "--quiet"]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_no_gpu_computes_in_int8(device: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*WORDS, "--device", device, "--precision", "int8"]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert f"--precision int8 is for the CPU, not {device}" in error


def test_without_the_arithmetic_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ldm.engine.device.processor_flags", lambda: frozenset({"avx2", "avx512f"}))
    assert run([*WORDS, "--device", "cpu", "--precision", "int8"]) == 2
    error = capfd.readouterr().err
    assert "--precision int8 needs a processor with VNNI" in error
    assert error.count("\n") == 1
