from __future__ import annotations

import dataclasses
import json
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import JobError
from ldm.jobs.fields import (
    ATTENTIONS,
    ETA_SAMPLERS,
    FLOW_GRID_NAMES,
    FLOW_ONLY_GRIDS,
    GRID_NAMES,
    SAMPLER_ALIASES,
    TASK_NAMES,
)
from ldm.jobs.job import Defaults, Job, from_record, to_record
from ldm.jobs.legacy import Legacy, translate
from ldm.jobs.options import options_of
from ldm.jobs.outputs import OutputPlan

FAMILY = Defaults(512, 768, 7.5, 50, "ddim", "default of v1")


def text() -> st.SearchStrategy[str]:
    return st.text(max_size=20)


def jobs() -> st.SearchStrategy[Job]:
    return st.builds(
        Job,
        prompt=st.none() | text(),
        prompts=st.lists(text(), max_size=4).map(tuple),
        negative=text(),
        width=st.none() | st.integers(1, 4096),
        height=st.none() | st.integers(1, 4096),
        steps=st.none() | st.integers(1, 1000),
        scale=st.none() | st.floats(-100, 100),
        sampler=st.none() | st.sampled_from(sorted(SAMPLER_ALIASES)),
        grid=st.none() | st.sampled_from(GRID_NAMES),
        seed=st.none() | st.integers(0, 2**64 - 1),
        n_samples=st.integers(1, 5),
        n_iter=st.integers(1, 4),
        fixed_code=st.booleans(),
        noise=st.sampled_from(["image", "stream"]),
        rng=st.sampled_from(["philox", "cpu", "device"]),
        overrides=st.lists(text(), max_size=2).map(tuple),
    )


@given(jobs())
def test_a_record_is_the_job(job: Job) -> None:
    assert from_record(json.loads(json.dumps(to_record(job)))) == job


def test_a_record_with_an_unknown_field_names_the_nearest() -> None:
    with pytest.raises(JobError, match=r"'step'.*did you mean steps"):
        from_record({"step": 3})


@pytest.mark.parametrize(
    "record", [{"steps": "5"}, {"steps": True}, {"prompts": "ab"}, {"eta": []}]
)
def test_a_record_with_a_value_of_the_wrong_kind_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(JobError, match="must be"):
        from_record(record)


@given(jobs())
def test_a_batch_is_its_own_batches(job: Job) -> None:
    batches = list(job.batches())
    assert sum(batch.n_samples for batch in batches) == job.count()
    for batch in batches:
        assert list(batch.batches()) == [batch]
        assert len(batch.texts()) == len(batch.image_seeds()) == batch.n_samples


def test_images_have_seeds_of_their_own() -> None:
    job = Job(prompt="a", seed=5, n_samples=2, n_iter=2)
    assert [batch.image_seeds() for batch in job.batches()] == [(5, 6), (7, 8)]
    fixed = dataclasses.replace(job, fixed_code=True)
    assert [batch.image_seeds() for batch in fixed.batches()] == [(5, 6), (5, 6)]
    stream = dataclasses.replace(job, noise="stream")
    assert [batch.image_seeds() for batch in stream.batches()] == [(5, 5), (5, 5)]


def test_seeds_wrap_around() -> None:
    assert Job(prompt="", seed=2**64 - 1, n_samples=2).image_seeds() == (2**64 - 1, 0)


def test_prompts_of_a_file_are_chunked_and_the_last_may_be_short() -> None:
    job = Job(prompts=("a", "b", "c"), n_samples=2, n_iter=2, noise="stream", seed=1)
    assert [batch.texts() for batch in job.batches()] == [("a", "b"), ("c",)] * 2
    assert {batch.draw_rows for batch in job.batches()} == {2}


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Job(steps=0), "--steps must be 1 to 1000, not 0"),
        (Job(steps=-3), "--steps must be 1 to 1000, not -3"),
        (Job(steps=1001), "--steps must be 1 to 1000"),
        (Job(width=0), "--width must be 1 or more"),
        (Job(n_iter=0), "--n_iter must be 1 to 1000000, not 0"),
        (Job(eta=1.5), "--eta must be 0 to 1"),
        (Job(scale=float("nan")), "--scale must be a number"),
        (Job(seed=2**64), "--seed must be at most"),
        (Job(sampler="eulr"), "--sampler 'eulr' is not known; did you mean euler?"),
        (Job(sampler="plms", eta=0.1), "--plms works only with --eta 0"),
        (Job(device="cuda:x"), "--device must be"),
        (Job(precision="half"), "--precision 'half' is not known"),
    ],
)
def test_what_is_wrong_is_said(job: Job, message: str) -> None:
    with pytest.raises(JobError) as caught:
        job.validate()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_resolving_fills_gaps_and_says_why() -> None:
    resolved = Job(prompt="a", height=64, sampler="k_euler_a").resolve(FAMILY, lambda: 99)
    job = resolved.job
    assert (job.width, job.height, job.steps, job.scale, job.seed) == (512, 64, 50, 7.5, 99)
    assert job.sampler == "euler_ancestral"
    assert resolved.why["width"] == "default of v1"
    assert resolved.why["seed"] == "drawn at random"
    assert "height" not in resolved.why
    seeds = count(7)
    assert Job(prompt="a", seed=-1).resolve(FAMILY, lambda: next(seeds)).job.seed == 7
    assert job.resolve(FAMILY, lambda: next(seeds)).job == job


def test_every_field_is_an_option_with_help() -> None:
    for kind in (Job, OutputPlan, Legacy):
        for name, detail in options_of(kind).items():
            assert detail.help or not detail.flags, name
    for task in TASK_NAMES:
        spellings = [
            flag
            for kind in (Job, OutputPlan, Legacy)
            for detail in options_of(kind).values()
            for flag in (detail.flags if detail.fits(task) else ())
        ]
        keys = [word.replace("_", "-") for word in spellings]
        assert len(keys) == len(set(keys)), task


def test_names_are_those_of_the_floors_above() -> None:
    from ldm.nn.attention import BACKENDS
    from ldm.sampling.flow import FLOW_GRIDS
    from ldm.sampling.samplers import SAMPLERS
    from ldm.sampling.schedule import GRIDS

    assert {name: row.aliases for name, row in SAMPLERS.items()} == SAMPLER_ALIASES
    assert {name for name, row in SAMPLERS.items() if "eta" in row.options} == set(ETA_SAMPLERS)
    assert (*GRIDS, *FLOW_ONLY_GRIDS) == GRID_NAMES
    assert tuple(FLOW_GRIDS) == FLOW_GRID_NAMES
    assert tuple(BACKENDS) == ATTENTIONS


def test_old_flags_become_fields() -> None:
    assert translate({"plms": True, "seed": 1}, script=False) == (
        {"seed": 1, "sampler": "plms"},
        [],
    )
    fields, notes = translate({"plms": True, "dpm_solver": True}, script=True)
    assert fields == {"sampler": "dpm_solver"}
    assert len(notes) == 1
    fields, notes = translate({"torchscript": True, "ipex": True, "bf16": True}, script=False)
    assert fields == {"precision": "bf16"}
    assert len(notes) == 2
    fields, _ = translate({"laion400m": True, "config": "x.yaml"}, script=True)
    assert fields["config"] == "configs/latent-diffusion/txt2img-1p4B-eval.yaml"


@pytest.mark.parametrize(
    "values",
    [
        {"plms": True, "dpm_solver": True},
        {"plms": True, "sampler": "ddim"},
        {"bf16": True, "precision": "fp16"},
    ],
)
def test_contradictions_are_errors(values: dict[str, object]) -> None:
    with pytest.raises(JobError, match="give one"):
        translate(values, script=False)
