"""Which seed each image has, and noise between two seeds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ldm.cli.app import run
from ldm.errors import JobError
from ldm.images.texts import read_record, read_texts
from ldm.jobs.job import Job
from ldm.jobs.metadata import parse_infotext
from ldm.jobs.seeds import MAX_SEED, parse_seeds
from ldm.sampling.noise import philox_normal, slerp
from tests.tiny_runs import SAMPLES, contents, draw
from tests.tiny_runs import home as home


def seeds_of(job: Job) -> list[tuple[int, ...]]:
    return [batch.image_seeds() for batch in job.batches()]


def test_a_list_with_spans() -> None:
    assert parse_seeds("1,2,5-9") == (1, 2, 5, 6, 7, 8, 9)
    assert parse_seeds(" 7 , 3 - 4 ") == (7, 3, 4)
    assert parse_seeds(f"{MAX_SEED}") == (MAX_SEED,)


@pytest.mark.parametrize("text", ["", "1,", "-1", "5-2", "1-x", "0-10000", f"{MAX_SEED + 1}", "١"])
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(JobError, match="--seeds"):
        parse_seeds(text)


def test_an_image_for_each_seed() -> None:
    job = Job(prompt="x", seeds="1,2,5-6", n_samples=3)
    assert job.count() == 4
    assert seeds_of(job) == [(1, 2, 5), (6,)]
    # A batch's own batches are itself: what is recorded makes the same again.
    assert [list(batch.batches()) for batch in job.batches()] == [[b] for b in job.batches()]
    classes = Job(task="sample", classes=("1", "2"), seeds="3,4")
    assert seeds_of(classes) == [(3,), (4,), (3,), (4,)]
    assert classes.count() == 4


def test_steps_between_seeds() -> None:
    assert seeds_of(Job(prompt="x", seed=5, seed_step=10, n_samples=2, n_iter=2)) == [
        (5, 15),
        (25, 35),
    ]
    assert seeds_of(Job(prompt="x", seed=5, seed_step=0, n_samples=2)) == [(5, 5)]
    assert seeds_of(Job(prompt="x", seed=MAX_SEED, n_samples=2)) == [(MAX_SEED, 0)]


def test_variations_keep_the_seed() -> None:
    job = Job(prompt="x", seed=5, variation_seed=9, variation_strength=0.2, n_samples=2, n_iter=2)
    assert seeds_of(job) == [(5, 5), (5, 5)]
    assert [batch.variation_seeds() for batch in job.batches()] == [(9, 10), (11, 12)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"variation_seed": 1}, "go together"),
        ({"variation_strength": 0.5}, "go together"),
        ({"variation_seed": 1, "variation_strength": 1.5}, "0 to 1"),
        ({"seeds": "1,2", "n_iter": 2}, "omit --n_iter"),
        ({"seeds": "1,2", "noise": "stream"}, "needs --noise image"),
        ({"seed_step": 2, "fixed_code": True}, "needs --noise image"),
        ({"seed_step": -1}, "--seed-step must be 0 to"),
        ({"seeds": "1-x"}, "is not a seed"),
    ],
)
def test_what_contradicts_itself(fields: dict[str, object], words: str) -> None:
    with pytest.raises(JobError, match=words):
        Job(**{"prompt": "x", **fields}).validate()  # type: ignore[arg-type]


def test_between_two_noises_by_hand() -> None:
    # One column along (1, 0), one along (0, 2): a right angle, so at a half both have the weight
    # sin(45 degrees) / sin(90 degrees).
    low, high = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    half = slerp(0.5, low.reshape(1, 1, 2, 1), high.reshape(1, 1, 2, 1)).flatten()
    root = math.sqrt(0.5)
    assert torch.allclose(half, torch.tensor([root, 2 * root]))
    # 60 degrees apart, a third of the way: sin(40) / sin(60) and sin(20) / sin(60).
    high = torch.tensor([0.5, math.sqrt(0.75)])
    third = slerp(1 / 3, low.reshape(1, 1, 2, 1), high.reshape(1, 1, 2, 1)).flatten()
    turned = math.radians(20)
    assert torch.allclose(third, torch.tensor([math.cos(turned), math.sin(turned)]))


def test_the_columns_are_those_of_the_height() -> None:
    low, high = philox_normal(1, (2, 4, 8, 6)), philox_normal(2, (2, 4, 8, 6))
    mixed = slerp(0.3, low, high)
    one = slerp(0.3, low[1:, 2:3, :, 4:5], high[1:, 2:3, :, 4:5])
    assert torch.equal(mixed[1:, 2:3, :, 4:5], one)
    assert torch.allclose(slerp(0.0, low, high), low, atol=1e-6)
    assert torch.allclose(slerp(1.0, low, high), high, atol=1e-6)
    assert torch.allclose(slerp(0.5, low, low), low)
    assert bool(slerp(0.5, low, -low).isfinite().all())


def test_images_of_listed_seeds_are_those_of_single_ones(home: Path) -> None:
    words = ["--prompt", "x", "--skip_grid"]
    assert draw(*words, "--seeds", "4,9-10", "--n_samples", "2", "--outdir", "list") == 0
    assert draw(*words, "--seed", "9", "--outdir", "one") == 0
    record = read_record(home / "list/samples/00001.png")
    assert record.job.image_seeds()[record.row] == 9
    assert run(["rerun", "list/samples/00001.png", "-o", "again.png"]) == 0
    assert (home / "again.png").read_bytes() == (home / "list/samples/00001.png").read_bytes()
    assert draw(*words, "--seeds", "9,77", "--outdir", "list", "--resume") == 0
    told = [read_record(path) for path in sorted((home / "list/samples").glob("*.png"))]
    assert [r.job.image_seeds()[r.row] for r in told] == [4, 9, 10, 77]
    assert draw(*words, "--seeds", "1,2", "--seed", "3") == 2


def test_a_file_of_prompts_with_seeds_and_steps(home: Path) -> None:
    (home / "a.txt").write_text("a\nb --d 7\n")
    assert draw("--from-file", "a.txt", "--seeds", "1,2", "--skip_grid") == 0
    told = [read_record(path) for path in sorted((home / SAMPLES).glob("*.png"))]
    seeds = [(r.job.texts()[r.row], r.job.image_seeds()[r.row]) for r in told]
    assert seeds == [("a", 1), ("a", 2), ("b", 7)]


def test_a_variation_is_told_and_made_again(home: Path) -> None:
    words = ["--prompt", "x", "--seed", "3", "--variation-seed", "8", "--skip_grid"]
    assert draw(*words, "--variation-strength", "0.25", "--n_samples", "2") == 0
    second = home / SAMPLES / "00001.png"
    settings = parse_infotext(read_texts(second)["parameters"]).settings
    assert (settings["Seed"], settings["Variation seed"]) == ("3", "9")
    assert settings["Variation seed strength"] == "0.25"
    before = contents(home / SAMPLES)
    assert len(set(before.values())) == 2
    assert run(["rerun", str(second), "-o", "again.png"]) == 0
    assert (home / "again.png").read_bytes() == second.read_bytes()
    assert draw(*words, "--variation-strength", "0.25", "--n_samples", "2", "--resume") == 0
    assert contents(home / SAMPLES) == before
