"""Prompts that change while they are sampled, and several joined by AND."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.engine.engine import Engine
from ldm.images.sources import Sources
from ldm.jobs.job import Job
from ldm.models.model import Model
from ldm.sampling.guidance import Calls, composed, in_turn
from ldm.sampling.samplers import SAMPLERS
from tests.comparing_runs import assert_same, one_by_one, tiny_engine


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Engine, Job]:
    """An engine of a tiny model, and a job for it."""
    return tiny_engine(tmp_path, prompt="a", steps=6)


def latent(tiny: tuple[Engine, Job], prompt: str, **fields: Any) -> Tensor:
    engine, job = tiny
    [result] = engine.run(replace(job, prompt=prompt, **fields))
    return result.latent


@pytest.fixture
def seen(tiny: tuple[Engine, Job], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompt that each call of the network is shown, by name."""
    engine, _ = tiny
    names = {"red": "a red cat", "blue": "a blue cat"}
    known = {name: engine.model.condition([text])[0].crossattn for name, text in names.items()}
    found: list[str] = []
    predict = Model.predict

    def look(self: Model, x: Tensor, t: Tensor, cond: Any, *more: Any) -> Tensor:
        shown = cond.crossattn[-1]
        found.extend(name for name, own in known.items() if torch.equal(own[0], shown))
        return predict(self, x, t, cond, *more)

    monkeypatch.setattr(Model, "predict", look)
    return found


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # the web UI's count starts at 0, so the first text of `[a:b:2]` holds for three calls
        ("a [red:blue:2] cat", ["red"] * 3 + ["blue"] * 3),
        ("a [red:blue:0.5] cat", ["red"] * 4 + ["blue"] * 2),
        ("a [red:blue:0] cat", ["red"] + ["blue"] * 5),
        ("a [red|blue] cat", ["red"] * 2 + ["blue", "red", "blue", "red"]),
        ("a [red:blue:100] cat", ["red"] * 6),
    ],
)
def test_the_prompt_changes_at_the_step(
    tiny: tuple[Engine, Job], seen: list[str], prompt: str, expected: list[str]
) -> None:
    latent(tiny, prompt, sampler="euler")
    assert seen == expected


def test_two_calls_a_step_are_counted(tiny: tuple[Engine, Job], seen: list[str]) -> None:
    """Of 12 calls, less the one that Heun's last step saves; a share counts them, too."""
    latent(tiny, "a [red:blue:0.5] cat", sampler="heun")
    assert seen == ["red"] * 7 + ["blue"] * 4


def test_a_first_step_of_two_calls_is_one(tiny: tuple[Engine, Job], seen: list[str]) -> None:
    latent(tiny, "a [red:blue:0] cat", sampler="plms")
    assert seen == ["red"] * 2 + ["blue"] * 5


def test_every_sampler_says_how_often_it_calls(tiny: tuple[Engine, Job]) -> None:
    for name, sampler in SAMPLERS.items():
        if name == "dpm_adaptive":  # as often as the error asks for
            continue
        calls = 0

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return x / (1 + sigma[:, None, None, None])

        sigmas = torch.linspace(10, 1, 9)
        noise = (
            tiny[0].stages.draws(tiny[1], Sources((16, 16), (16, 16))) if sampler.draws else None
        )
        sampler.fn(denoise, torch.ones(1, 4, 2, 2), sigmas, noise=noise)
        assert round(calls / 8) == sampler.calls, name


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2s_ancestral"])
def test_every_image_is_as_alone(tiny: tuple[Engine, Job], sampler: str) -> None:
    engine, job = tiny
    texts = [
        "[cat|dog]",
        "a cat AND a dog :0.5",
        "[cat:dog:2]",
        "a cat",
        "a AND b AND c",
        "x AND y",
    ]
    jobs = [
        replace(job, prompt=text, seed=seed, sampler=sampler) for seed, text in enumerate(texts)
    ]
    results = list(engine.run_all([*jobs, replace(job, prompts=tuple(texts), n_samples=6)]))
    assert_same(results[:6], one_by_one(engine, jobs))
    together = list(engine.run(replace(job, prompts=tuple(texts), n_samples=6)))
    for one, other in zip(results[6:], together, strict=True):
        assert (one.latent - other.latent).abs().max() < 1e-4


def test_and_is_a_weighted_sum_of_directions(tiny: tuple[Engine, Job]) -> None:
    same = latent(tiny, "a cat :0.4 AND a cat :0.6")
    assert (same - latent(tiny, "a cat")).abs().max() < 1e-3
    assert (latent(tiny, "a cat :0.5") - latent(tiny, "a cat", scale=1.5)).abs().max() < 1e-3
    one = latent(tiny, "a cat AND a dog")
    assert (one - latent(tiny, "a dog AND a cat")).abs().max() < 1e-3
    assert (one - latent(tiny, "a cat")).abs().max() > 1e-2
    assert (latent(tiny, "a AND b", scale=1.0) - latent(tiny, "a", scale=1.0)).abs().max() > 1e-3


def test_the_sum_by_hand() -> None:
    def giving(*values: float) -> Any:
        return lambda x, sigma: torch.tensor(values)[:, None, None, None] * torch.ones_like(x)

    def pair(x: Tensor, sigma: Tensor) -> Tensor:
        return giving(1.0, 1.0, 3.0, 4.0)(x, sigma)  # without, without; first, first

    denoise = composed(pair, [giving(5.0, 6.0)], [(1.0, 0.5), (2.0, 0.0)], [2.0, 3.0])
    out = denoise(torch.zeros(2, 1, 1, 1), torch.ones(2)).flatten().tolist()
    assert out == [1 + 2 * (1 * 2 + 2 * 4), 1 + 3 * (0.5 * 3)]


def test_calls_are_counted_one_way_or_the_other() -> None:
    def of(value: float) -> Any:
        return lambda x, sigma: x + value

    def numbers(calls: Calls, does: Sequence[str]) -> list[float]:
        denoise = in_turn([(0, of(1)), (2, of(2))], calls)
        found = []
        for word in does:
            if word == "call":
                found.append(float(denoise(torch.zeros(1), torch.ones(1))))
            else:
                calls.step_done()
        return found

    assert numbers(Calls(by_step=False), ["call"] * 5) == [1, 2, 2, 2, 2]
    assert numbers(Calls(), ["call", "call", "step", "call"]) == [1, 1, 2]


def test_the_negative_prompt_changes_too(tiny: tuple[Engine, Job]) -> None:
    changed = latent(tiny, "a cat", negative="[red:blue:2]")
    assert (changed - latent(tiny, "a cat", negative="red")).abs().max() > 1e-4
    assert (changed - latent(tiny, "a cat", negative="blue")).abs().max() > 1e-4
    literal = latent(tiny, "a cat", negative="red AND blue")  # which has no meaning there
    assert torch.equal(literal, latent(tiny, "a cat", negative="red AND blue"))


def test_other_syntaxes_know_none_of_it(tiny: tuple[Engine, Job]) -> None:
    for syntax in ("weights", "plain"):
        one = latent(tiny, "a cat AND [a|b]", prompt_syntax=syntax)
        assert (one - latent(tiny, "a cat AND [a|b]")).abs().max() > 1e-3


def test_hires_fix_goes_on_in_the_steps_of_the_prompt(
    tiny: tuple[Engine, Job], seen: list[str]
) -> None:
    hires = {"hires": "32x32", "hires_strength": 0.5, "hires_upscaler": "latent", "hires_steps": 4}
    latent(tiny, "a [red:blue:1.5] cat", sampler="euler", **hires)
    assert seen == ["red"] * 6 + ["red"] * 3 + ["blue"]
