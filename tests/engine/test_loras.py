"""LoRAs in whole runs: the golden images, and weights taken back to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.engine.engine import Engine
from ldm.engine.plan import Plan, make_plan
from ldm.errors import CheckpointError, JobError
from ldm.workers.pool import load_engine
from tests.golden_data import GOLDEN, tensors
from tests.golden_runs import assert_latents, v1_flags

FOLDER = (GOLDEN / "modules/lora-v1").as_posix()
ONE, TWO = f"{FOLDER}/kohya.safetensors", f"{FOLDER}/kohya-locon.safetensors"
PROMPT = "a watercolor fox in the rain"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    _, config, _, checkpoint = v1_flags(tmp_path_factory.mktemp("v1"))
    return {"config": config, "model": checkpoint}


def planned(model: dict[str, str], **fields: Any) -> Plan:
    fixed = {"task": "txt2img", "prompt": PROMPT, "height": 56, "width": 48, "steps": 5}
    rest = {"scale": 6.0, "seed": 91, "sampler": "ddim", "device": "cpu", "precision": "full"}
    return make_plan({**fixed, **rest, **model, **fields})


def loaded(plan: Plan) -> Engine:
    return load_engine(plan, plan.given, lambda event: None)[0]


def numbers(engine: Engine) -> dict[str, Tensor]:
    return {
        name: tensor.to_dense() if tensor.is_mkldnn else tensor.clone()
        for name, tensor in [*engine.model.named_parameters(), *engine.model.named_buffers()]
    }


def latents(engine: Engine, *plans: Plan) -> Tensor:
    jobs = [plan.job for plan in plans]
    return torch.stack([result.latent for result in engine.run_all(jobs)])


def test_a_run_is_that_of_the_original_with_the_files_merged(model: dict[str, str]) -> None:
    stream = {"noise": "stream", "rng": "cpu", "schedule_compat": "ldm", "eta": 0.0}
    plan = planned(model, n_samples=2, loras=(f"{ONE}:0.8", f"{TWO}:-0.4"), **stream)
    found = torch.stack([result.latent for result in loaded(plan).run(plan.job)])
    assert_latents(found, tensors("modules/lora-v1/run.safetensors")["latents"])


@pytest.mark.parametrize("precision", ["full", "bf16"])
def test_loras_are_taken_back_to_the_bit(model: dict[str, str], precision: str) -> None:
    plain = planned(model, precision=precision)
    one = planned(model, precision=precision, loras=(f"{ONE}:0.8",))
    tag = planned(model, precision=precision, prompt=f"{PROMPT}<lora:{ONE}:0.8>")
    engine = loaded(plain)
    before = numbers(engine)
    a, b, c, d, e = latents(engine, plain, one, tag, plain, one)
    after = numbers(engine)
    assert torch.equal(a, d)
    assert torch.equal(b, c)
    assert torch.equal(b, e)
    assert not torch.allclose(a, b)
    assert any(not torch.equal(before[key], after[key]) for key in before)
    latents(engine, plain)
    assert all(torch.equal(own, before[key]) for key, own in numbers(engine).items())


def test_a_lora_may_be_for_a_part_of_the_steps(model: dict[str, str]) -> None:
    whole = planned(model, loras=(f"{TWO}:0.8",))
    engine = loaded(whole)
    names = ("start=0:end=0.5", "start=0.5", "start=0:end=1")
    parts = [planned(model, loras=(f"{TWO}:0.8:{name}",)) for name in names]
    first, last, both, all_steps = latents(engine, *parts, whole)
    assert torch.equal(both, all_steps)
    assert not torch.allclose(first, all_steps)
    assert not torch.allclose(first, last)


def test_prompts_of_one_job_may_name_different_loras(model: dict[str, str]) -> None:
    texts = (f"{PROMPT}<lora:{ONE}:0.5>", PROMPT)
    plan = planned(model, prompts=texts, n_samples=2)
    assert [batch.prompts for batch in plan.job.batches()] == [texts[:1], texts[1:]]
    assert plan.job.lora_files == (f"{ONE}={ONE}",)


def test_errors_come_before_the_weights(model: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="LoRA kohy: no such file"):
        planned(model, loras=("kohy",))
    (tmp_path / "x.safetensors").write_text("a text")
    with pytest.raises(CheckpointError, match="neither"):
        planned(model, loras=(f"{tmp_path}/x.safetensors",))
    with pytest.raises(JobError, match="negative prompt names a LoRA"):
        planned(model, negative=f"<lora:{ONE}:1>")
