"""What lies on the device while each stage runs, as --offload says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ldm.engine.device import Policy, choose
from ldm.engine.memory import Offload
from ldm.errors import JobError
from ldm.jobs.outputs import OutputPlan, split
from ldm.jobs.tuning import Tuning
from ldm.models.model import Model
from tests.tiny_models import make, v1_tree

GPU = torch.device("cuda")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Model:
    return make(v1_tree())


class Places:
    """Where parts were put last."""

    def __init__(self) -> None:
        self.where: dict[nn.Module, str] = {}

    def __call__(self, part: nn.Module, device: torch.device) -> None:
        self.where[part] = device.type

    def on_gpu(self, model: Model) -> list[str]:
        return [name for name, part in model.named_children() if self.where.get(part) == "cuda"]


def test_parts_come_in_turn(model: Model) -> None:
    places = Places()
    offload = Offload(GPU, places, mode="parts")
    assert offload.active
    assert not offload.start()  # nothing more can be put aside
    held = {}
    for stage in ("text or image encoder", "network", "decoder"):
        offload.use(model, stage)
        held[stage] = places.on_gpu(model)
    assert held["network"] == ["model"]
    assert held["decoder"] == ["first_stage_model"]
    assert set(held["text or image encoder"]) == {"first_stage_model", "cond_stage_model"}


def test_layers_stay_in_the_main_memory(model: Model) -> None:
    places = Places()
    offload = Offload(GPU, places, mode="layers")
    offload.use(model, "network")
    offload.use(model, "network")
    assert places.on_gpu(model) == []
    assert offload.streamed is not None
    offload.streamed.end()
    assert not any(part._forward_hooks for part in model.network.modules())


@pytest.mark.parametrize("mode", ["none", "auto"])
def test_without_need_nothing_moves(model: Model, mode: str) -> None:
    places = Places()
    offload = Offload(GPU, places, mode=mode)
    offload.use(model, "network")
    assert not places.where
    assert offload.start() is (mode == "auto")


def test_a_cpu_has_nowhere_to_put_things(model: Model) -> None:
    places = Places()
    offload = Offload(CPU, places, mode="layers")
    offload.use(model, "network")
    assert not offload.start()
    assert not places.where


def test_where_a_model_is_loaded_to() -> None:
    assert choose("cpu", "auto", "auto", tuning=Tuning("parts")).home == CPU
    for mode, home in {"auto": GPU, "none": GPU, "parts": CPU, "layers": CPU}.items():
        assert Policy(GPU, torch.float16, "fp16", offload=mode).home == home


def test_the_flags(tmp_path: Path) -> None:
    assert OutputPlan().tuning.offload == "auto"
    assert OutputPlan(lowvram=True).tuning.offload == "parts"
    assert OutputPlan(lowvram=True, offload="layers").tuning.offload == "layers"
    with pytest.raises(JobError, match="--offload"):
        split({"offload": "most"})
