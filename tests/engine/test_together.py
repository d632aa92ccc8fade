"""Images of many jobs drawn together, and with less memory than that takes: always the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.engine.engine import Engine
from ldm.engine.events import Event, RunWarning, ignore
from ldm.engine.memory import Offload, OutOfMemory, is_out_of_memory
from ldm.engine.plan import make_plan
from ldm.jobs.job import Job
from ldm.models.encoding import Memory
from ldm.workers.pool import load_engine
from tests.comparing_runs import Count, assert_same, one_by_one, tiny_engine

LONG = "a very long prompt of many words, " * 20


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Engine, Job]:
    """An engine of a tiny model, and a job for it."""
    return tiny_engine(tmp_path, prompt="a", steps=2)


def jobs_of(job: Job) -> list[Job]:
    """Jobs of two shapes of prompts and two of steps, in turns, of other seeds and scales."""
    prompts = ["a cat", "a dog", "a cat", LONG, "(a cat:1.3)", "a dog"]
    jobs = [
        replace(
            job, prompt=text, seed=10 * index, scale=2.0 + index % 3, negative="b" * (index % 2)
        )
        for index, text in enumerate(prompts)
    ]
    return [*jobs, replace(job, steps=3), replace(job, prompt="a cat", n_samples=2, n_iter=2)]


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral", "dpmpp_2m_sde"])
def test_together_every_image_is_as_alone(tiny: tuple[Engine, Job], sampler: str) -> None:
    engine, job = tiny
    jobs = jobs_of(replace(job, sampler=sampler))
    assert_same(list(engine.run_all(jobs)), one_by_one(engine, jobs))


def test_so_many_at_once(tiny: tuple[Engine, Job]) -> None:
    engine, job = tiny
    calls = Count(engine.model.network)
    jobs = [replace(job, prompt=text, seed=seed) for seed, text in enumerate(["x", LONG, "y"] * 3)]
    results = list(engine.run_all(jobs, None, 4))
    assert [result.seed for result in results] == list(range(9))
    # Six short prompts as four and two, three long ones; both sides of the guidance.
    assert sorted(calls.rows) == [4, 4, 6, 6, 8, 8]
    theirs = one_by_one(engine, jobs)
    for ours, alone in zip(results, theirs, strict=True):
        assert (ours.latent - alone.latent).abs().max() < 1e-3


def test_a_text_is_encoded_once(tiny: tuple[Engine, Job], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, job = tiny
    embedder: Any = engine.model.cond_stage_model
    hidden, calls = embedder.hidden, list[int]()

    def count(ids: list[list[int]], clip_skip: int | None) -> Tensor:
        calls.append(len(ids))
        encoded: Tensor = hidden(ids, clip_skip)
        return encoded

    monkeypatch.setattr(embedder, "hidden", count)
    texts = ["a cat", "a dog", "a cat", "a dog", "a cat"]
    list(engine.run_all([replace(job, prompt=text) for text in texts]))
    list(engine.run(replace(job, prompts=("a dog", "a cat"), n_samples=2, negative="a cat")))
    assert calls == [1, 1, 1]  # two prompts and the empty one


def test_the_memory_of_texts_is_bounded() -> None:
    memory, made = Memory(most=2), []

    def recall(text: str) -> None:
        def make() -> list[tuple[Tensor, Tensor | None]]:
            made.append(text)
            return []

        memory.recall((text, 1, None, torch.float32), make)  # type: ignore[arg-type]

    for text in ("a", "b", "a", "c", "a", "b"):
        recall(text)
    assert made == ["a", "b", "c", "b"]
    assert len(memory.kept) == 2


def test_a_kernel_that_looks_at_the_size_of_the_batch(tiny: tuple[Engine, Job]) -> None:
    """Where an image would come out another way together, it is drawn alone."""
    engine, job = tiny
    jobs = [replace(job, prompt="x", seed=seed) for seed in range(4)]
    engine.model.network.register_forward_hook(
        lambda module, given, out: out * (1 + 1e-6 * len(out))
    )
    calls = Count(engine.model.network)
    ours = list(engine.run_all(jobs))
    assert calls.rows[-1] == 2
    assert_same(ours, one_by_one(engine, jobs))


def test_the_bundled_model_draws_together() -> None:
    asked = {"task": "txt2img", "prompt": "a red apple", "seed": 1, "steps": 2, "device": "cpu"}
    plan = make_plan(asked)
    engine, plan = load_engine(plan, plan.given, ignore)
    texts = ["a red apple", "a blue car", "two cats", "a red apple", "a tree", "a house"]
    jobs = [replace(plan.job, prompt=text, scale=4.0 + i) for i, text in enumerate(texts)]
    theirs = one_by_one(engine, jobs)
    calls = Count(engine.model.network)
    assert_same(list(engine.run_all(jobs)), theirs)
    assert calls.rows[-1] == 2 * len(jobs)  # the check before it, one by one and together, held


# --- memory ---------------------------------------------------------------------------------------


def refuse(module: nn.Module, most: int, error: Callable[[], Exception]) -> None:
    """Let the memory suffice for so many rows alone."""

    def check(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if len(given[0]) > most:
            raise error()

    module.register_forward_pre_hook(check)


def on_cpu() -> Exception:
    return RuntimeError(
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 8388608 bytes. Error code 12 (Cannot allocate memory)"
    )


def on_gpu() -> Exception:
    return torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("error", [on_cpu, on_gpu, MemoryError])
def test_fewer_at_once_where_memory_ends(
    tiny: tuple[Engine, Job], error: Callable[[], Exception]
) -> None:
    engine, job = tiny
    jobs = [replace(job, prompt=f"x {seed}", seed=seed) for seed in range(6)]
    theirs = one_by_one(engine, jobs)
    refuse(engine.model.network, 4, error)
    calls, events = Count(engine.model.network), list[Event]()
    together = list(engine.run_all(jobs, events.append, 6))
    warnings = [event.text for event in events if isinstance(event, RunWarning)]
    assert warnings == [
        "out of memory with 6 images at once; continuing with 3",
        "out of memory with 3 images at once; continuing with 2",
    ]
    assert set(calls.rows) <= {2, 4}
    for ours, alone in zip(together, theirs, strict=True):
        assert (ours.latent - alone.latent).abs().max() < 1e-3
    events.clear()
    list(engine.run_all(jobs, events.append, 6))
    assert not [event for event in events if isinstance(event, RunWarning)]


@pytest.mark.parametrize("noise", ["image", "stream"])
def test_a_batch_is_halved_and_stays_what_it_was(tiny: tuple[Engine, Job], noise: str) -> None:
    engine, job = tiny
    prompts = ("a", "b", "c", "d", "e")
    job = replace(
        job, prompts=prompts, n_samples=3, noise=noise, sampler="euler_ancestral", scale=1.0
    )
    theirs = one_by_one(engine, [job])
    refuse(engine.model.network, 2, on_cpu)
    ours = one_by_one(engine, [job])
    assert [result.record for result in ours] == [result.record for result in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert (one.latent - other.latent).abs().max() < 1e-4


def test_decoding_goes_on_in_tiles(
    tiny: tuple[Engine, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, job = tiny
    decode, asked = engine.model.decode, list[str]()

    def refuse_whole(z: Tensor, tiling: str = "auto") -> Tensor:
        asked.append(tiling)
        if tiling != "on":
            raise on_cpu()
        return decode(z, "off")

    monkeypatch.setattr(engine.model, "decode", refuse_whole)
    events: list[Event] = []
    assert len(list(engine.run(replace(job, n_samples=2), events.append))) == 2
    assert asked == ["auto", "on", "on"]
    assert "in tiles" in next(event.text for event in events if isinstance(event, RunWarning))
    with pytest.raises(OutOfMemory, match="does not suffice for the decoder"):
        list(engine.run(replace(job, vae_tiling="off")))


def test_what_is_not_in_use_is_put_aside(tiny: tuple[Engine, Job]) -> None:
    engine, job = tiny
    moved: list[tuple[nn.Module, str]] = []
    engine.stages.offload = Offload(
        torch.device("cuda"), lambda part, where: moved.append((part, where.type))
    )
    left = [1]

    def refuse_once(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if left and left.pop():
            raise on_gpu()

    engine.model.network.register_forward_pre_hook(refuse_once)
    events: list[Event] = []
    assert len(list(engine.run(job, events.append))) == 1
    assert "moving unused parts of the model to the main memory" in next(
        e.text for e in events if isinstance(e, RunWarning)
    )
    model = engine.model
    assert moved == [
        (model.first_stage_model, "cpu"),
        (model.cond_stage_model, "cpu"),
        (model.model, "cuda"),
        (model.model, "cpu"),
        (model.cond_stage_model, "cpu"),
        (model.first_stage_model, "cuda"),
    ]


def test_where_nothing_helps_it_is_said_what_might(tiny: tuple[Engine, Job]) -> None:
    engine, job = tiny
    refuse(engine.model.network, 0, on_cpu)
    with pytest.raises(OutOfMemory) as caught:
        list(engine.run(job))
    assert "the memory does not suffice for the network: use a smaller size" in str(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    engine.model.network.register_forward_pre_hook(_fault, prepend=True)
    with pytest.raises(RuntimeError, match="shapes"):
        list(engine.run(job))


def _fault(module: nn.Module, given: tuple[Tensor, ...]) -> None:
    raise RuntimeError("shapes do not fit")
