"""YAMLs of models with odd sizes, built without their numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.checkpoints.config import Config, read_config
from ldm.engine.fit import size_rule
from ldm.models.inventory import shapes_of
from tests.fuzz.damage import damaged_json, with_an_odd_value
from tests.fuzz.watch import watched

fuzzed = settings(settings.get_profile("fuzz"))
TOP = Path(__file__).parents[2]
MODELS = [
    read_config(TOP / name).tree["model"]
    for name in (
        "models/emoji-128.yaml",
        "configs/stable-diffusion/v2-1-stable-unclip-h-inference.yaml",
        "configs/latent-diffusion/semantic_synthesis512.yaml",
    )
]


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """Build each once, so that nothing is imported later on."""
    for model in MODELS:
        shapes_of(Config("x", {"model": model}))


@fuzzed
@given(with_an_odd_value(MODELS) | st.sampled_from(MODELS).flatmap(damaged_json))
def test_models_of_odd_sizes(tmp_path: Path, model: Any) -> None:
    with watched(tmp_path):
        config = Config("x.yaml", {"model": model})
        size_rule(config)
        shapes_of(config)
