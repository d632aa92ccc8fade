from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldm.engine.device import Policy, choose
from ldm.engine.engine import Engine
from ldm.engine.events import BatchStarted, Event, RunWarning, StepDone
from ldm.engine.results import Result
from ldm.engine.stages import ENCODERS
from ldm.errors import JobError, NonFiniteError
from ldm.jobs.job import Job
from ldm.jobs.metadata import Record
from ldm.models.conditioner import Extras
from ldm.models.conditioning import Conditioning
from ldm.models.encoding import Memory, PromptEncoding
from ldm.sampling.denoiser import DenoiseFn
from ldm.sampling.schedule import NoiseSchedule

JOB = Job(
    prompt="a",
    width=24,
    height=16,
    steps=4,
    scale=3.0,
    sampler="euler_ancestral",
    seed=7,
    n_samples=2,
    n_iter=2,
)
FULL = Policy(torch.device("cpu"), torch.float32, "full")
HALF = Policy(torch.device("cpu"), torch.bfloat16, "bf16")


class Part(nn.Module):
    """One weight, whose precision is that of a stage."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.levels = 1


class Encoder(Part):
    def unknown_words(self, text: str) -> list[str]:
        return [word for word in text.split() if word == "xyzzy"]


class Stub:
    """A model whose image is its prompt's length, and which overflows where it is told to."""

    latent_channels = 3
    factor = 8
    multiple = 8  # the network has one level
    merging = None

    def __init__(self, broken: str = "", *, even_in_float32: bool = False) -> None:
        self.schedule = NoiseSchedule.from_betas()
        self.network = Part()
        self.first_stage_model = Part()
        self.cond_stage_model = self.text_conditioner = Encoder()
        self.broken = broken
        self.even_in_float32 = even_in_float32
        self.calls: list[tuple[str, torch.dtype]] = []

    def to(self, dtype: torch.dtype) -> Stub:
        for part in (self.network, self.first_stage_model, self.cond_stage_model):
            part.to(dtype)
        return self

    def _through(self, stage: str, part: nn.Module, values: Tensor) -> Tensor:
        dtype = next(part.parameters()).dtype
        self.calls.append((stage, dtype))
        if stage == self.broken and (dtype is not torch.float32 or self.even_in_float32):
            return values * float("nan")
        return values

    def condition(
        self,
        texts: Sequence[str],
        encoding: PromptEncoding,
        beside: Sequence[str],
        memory: Memory,
        extras: Extras,
    ) -> tuple[Conditioning, list[str]]:
        lengths = torch.tensor([float(len(text)) for text in texts]).view(-1, 1, 1)
        hidden = self._through(ENCODERS, self.cond_stage_model, lengths)
        return Conditioning(crossattn=hidden), [text[5:] for text in texts]

    def denoiser(
        self, cond: Conditioning, uncond: Conditioning | None, scale: float, **how: object
    ) -> DenoiseFn:
        assert cond.crossattn is not None
        target = (cond.crossattn / 10).view(-1, 1, 1, 1)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            mixed = target + 0.1 * x / (1 + sigma.view(-1, 1, 1, 1))
            return self._through("network", self.network, mixed)

        return denoise

    def decode(self, z: Tensor, tiling: str = "auto") -> Tensor:
        image = z.repeat_interleave(8, 2).repeat_interleave(8, 3)
        return self._through("decoder", self.first_stage_model, image)


def engine(stub: Any = None, policy: Policy = FULL) -> Engine:
    return Engine(stub or Stub(), policy, "stub", "0123")


def assert_same(ours: Result, theirs: Result) -> None:
    assert torch.equal(ours.latent, theirs.latent)
    assert np.array_equal(ours.image, theirs.image)
    assert ours.record == theirs.record


@pytest.mark.parametrize("noise", ["image", "stream"])
@pytest.mark.parametrize("rng", ["philox", "cpu"])
@pytest.mark.parametrize("fixed_code", [False, True])
def test_a_record_makes_the_same_image(noise: str, rng: str, fixed_code: bool) -> None:
    job = replace(JOB, noise=noise, rng=rng, fixed_code=fixed_code)
    results = list(engine().run(job))
    assert len(results) == 4
    for result in results:
        record = Record.from_json(result.record.to_json())
        again = list(engine().run(record.job))
        assert_same(again[record.row], result)


def test_a_record_of_a_short_batch_makes_the_same_image() -> None:
    job = replace(JOB, prompt=None, prompts=("a", "bb", "ccc"), noise="stream", fixed_code=True)
    results = list(engine().run(job))
    assert [result.prompt for result in results] == ["a", "bb", "ccc"] * 2
    for result in results:
        assert_same(list(engine().run(result.record.job))[result.record.row], result)


def test_an_image_does_not_depend_on_its_batch() -> None:
    alone = [next(engine().run(replace(JOB, seed=7 + i, n_samples=1, n_iter=1))) for i in range(4)]
    for ours, theirs in zip(engine().run(JOB), alone, strict=True):
        assert ours.seed == theirs.seed
        assert torch.equal(ours.latent, theirs.latent)


def test_in_a_stream_it_does() -> None:
    job = replace(JOB, noise="stream")
    images = [result.latent for result in engine().run(job)]
    first = list(engine().run(replace(job, n_samples=1, n_iter=4)))
    assert not torch.equal(images[1], first[1].latent)


def test_images_come_one_by_one() -> None:
    stub = Stub()
    results = engine(stub).run(JOB)
    next(results)
    assert [stage for stage, _ in stub.calls].count("decoder") == 1


@pytest.mark.parametrize("stage", [ENCODERS, "network", "decoder"])
@pytest.mark.parametrize("noise", ["image", "stream"])
def test_what_overflows_is_done_again_in_float32(stage: str, noise: str) -> None:
    job = replace(JOB, noise=noise)
    stub, events = Stub(stage).to(torch.bfloat16), list[Event]()
    results = list(engine(stub, HALF).run(job, events.append))
    for ours, theirs in zip(results, engine().run(job), strict=True):
        assert torch.equal(ours.latent, theirs.latent)
    dtypes = {dtype for name, dtype in stub.calls if name == stage}
    assert dtypes == {torch.bfloat16, torch.float32}
    assert {dtype for name, dtype in stub.calls if name != stage} == {torch.bfloat16}
    assert stub.network.weight.dtype is torch.bfloat16
    warnings = [event.text for event in events if isinstance(event, RunWarning)]
    assert warnings == [f"the {stage} returned NaN or infinity; trying again in float32"]


@pytest.mark.parametrize("stage", [ENCODERS, "network", "decoder"])
@pytest.mark.parametrize("policy", [HALF, FULL])
def test_no_image_of_what_is_not_finite(stage: str, policy: Policy) -> None:
    stub = Stub(stage, even_in_float32=True).to(policy.dtype)
    with pytest.raises(NonFiniteError) as caught:
        list(engine(stub, policy).run(JOB))
    assert caught.value.stage == stage
    assert stage in str(caught.value)


def test_losses_of_the_prompt_are_told_once() -> None:
    events: list[Event] = []
    list(engine().run(replace(JOB, prompt="abcdefgh", negative="xyzzy"), events.append))
    warnings = [event.text for event in events if isinstance(event, RunWarning)]
    assert len(warnings) == 2
    assert "'fgh'" in warnings[0]
    assert "'xyzzy'" in warnings[1]


def test_steps_are_told() -> None:
    events: list[Event] = []
    list(engine().run(replace(JOB, n_iter=1), events.append))
    assert events == [BatchStarted(2, 4), *[StepDone(i, 4) for i in (1, 2, 3, 4)]]
    denoised = [event.denoised for event in events if isinstance(event, StepDone)]
    assert all(each is not None and each.shape[0] == 2 for each in denoised)


def test_words_become_a_policy() -> None:
    policy = choose("cpu", "auto", "auto", {"ATTN_PRECISION": "fp32"})
    assert (policy.precision, policy.dtype, policy.upcast) == ("full", torch.float32, True)
    assert choose("cpu", "bf16", "sdpa").dtype is torch.bfloat16
    assert not choose("cpu", "bf16", "sdpa").upcast
    autocast = choose("cpu", "autocast", "auto")
    assert (autocast.precision, autocast.autocast, len(autocast.notes)) == ("full", False, 1)


def test_what_is_not_here_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(JobError, match="no GPU"):
        choose("cuda", "auto", "auto")
