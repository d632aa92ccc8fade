"""The packaged list of keys is that of the models, and is read without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ldm.checkpoints.config import override, read_config, resource
from ldm.models.inventory import (
    encode,
    expected_shapes,
    fingerprint,
    inventory,
    packaged_yamls,
    shapes_of,
)
from tests.golden_keys import MODELS, SD3_MODELS, golden_shapes, model_shapes


def test_the_list_is_up_to_date() -> None:
    """Run `python -m ldm.models.inventory` where a YAML or a network has changed."""
    for path in packaged_yamls():
        config = read_config(path)
        assert inventory().get(fingerprint(config)) == shapes_of(config), path.name


@pytest.mark.parametrize("name", MODELS)
def test_published_models(name: str) -> None:
    path = resource("configs") / f"{MODELS[name][0]}.yaml"
    assert expected_shapes(read_config(path)) == model_shapes(name)


@pytest.mark.parametrize("name", SD3_MODELS)
def test_published_models_without_text_encoders(name: str) -> None:
    shapes = expected_shapes(read_config(resource("configs") / f"{SD3_MODELS[name][0]}.yaml"))
    texts = {key: shapes[key] for key in shapes if key.startswith("text_encoders.")}
    assert shapes == {**golden_shapes(name), **texts}
    table = "text_encoders.t5xxl.transformer.encoder.embed_tokens.weight"
    assert texts[table] == (32128, 4096)
    assert texts["text_encoders.clip_g.transformer.text_projection.weight"] == (1280, 1280)


def test_a_yaml_without_t5_is_known_too() -> None:
    config = read_config(resource("configs") / "sd3" / "sd3-medium.yaml")
    whole = expected_shapes(config)
    less = override(config, ["model.params.cond_stage_config.params.t5=none"])
    assert fingerprint(less) not in inventory()
    assert expected_shapes(less) == shapes_of(less)
    assert not any("t5xxl" in key for key in expected_shapes(less))
    same = override(config, ["model.params.cond_stage_config.params.t5=file"])
    assert expected_shapes(same) == whole


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
