"""The packaged list of keys is that of the models, and is read without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ldm.checkpoints.config import read_config, resource
from ldm.models.inventory import (
    encode,
    expected_shapes,
    fingerprint,
    inventory,
    packaged_yamls,
    shapes_of,
)
from tests.golden_keys import MODELS, model_shapes


def test_the_list_is_up_to_date() -> None:
    """Run `python -m ldm.models.inventory` where a YAML or a network has changed."""
    for path in packaged_yamls():
        config = read_config(path)
        assert inventory().get(fingerprint(config)) == shapes_of(config), path.name


@pytest.mark.parametrize("name", MODELS)
def test_published_models(name: str) -> None:
    path = resource("configs") / f"{MODELS[name][0]}.yaml"
    assert expected_shapes(read_config(path)) == model_shapes(name)


def test_another_yaml_is_built() -> None:
    config = read_config(resource("configs") / "stable-diffusion" / "v1-inference.yaml")
    config.tree["model"]["params"]["unet_config"]["params"]["in_channels"] = 8
    shapes = expected_shapes(config)
    assert shapes["model.diffusion_model.input_blocks.0.0.weight"] == (320, 8, 3, 3)


def test_what_does_not_describe_the_model_is_not_in_the_fingerprint() -> None:
    config = read_config(resource("configs") / "stable-diffusion" / "v1-inference.yaml")
    before = fingerprint(config)
    config.tree["data"] = {"x": 1}
    assert fingerprint(config) == before


def test_encoding_is_the_same_every_time() -> None:
    models = {"m": {"b": (1, 2), "a": (3,)}}
    assert encode(models) == encode(models)


def test_no_torch_is_needed_for_a_packaged_yaml() -> None:
    code = (
        "import sys\n"
        "from ldm.checkpoints.config import read_config, resource\n"
        "from ldm.models.inventory import expected_shapes\n"
        "path = resource('configs') / 'stable-diffusion' / 'v2-inference.yaml'\n"
        "assert len(expected_shapes(read_config(path))) == 1240\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
