"""A YAML of enormous sizes is one clear line, before anything is built of it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from ldm.checkpoints.config import Config, override, parse_config, read_config, resource
from ldm.checkpoints.sizes import LEVELS, MEASURES, SIZES
from ldm.cli.app import run
from ldm.errors import ConfigError
from ldm.models.targets import _DDCONFIG, SCHEDULE
from ldm.nn.clip_sizes import OpenTextConfig, OpenVisionConfig, TextConfig

UNET = "unet_config.params"
STAGE = "first_stage_config.params"
TEXT = "cond_stage_config.params"
# Lists of truth values.
UNBOUNDED = {"disable_self_attentions"}


def bundled() -> Config:
    return read_config(resource("models") / "emoji-128.yaml")


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        (f"{UNET}.num_res_blocks", 10**9, "must be 0 to 8, not 1000000000"),
        (f"{UNET}.num_res_blocks", [2, 10**9, 2], "num_res_blocks[1] must be 0 to 8"),
        (f"{UNET}.transformer_depth", 10**9, "must be 0 to 16"),
        (f"{UNET}.model_channels", 1e12, "must be 1 to 65536, not 1000000000000.0"),
        (f"{UNET}.model_channels", 0, "must be 1 to 65536, not 0"),
        (f"{UNET}.model_channels", -32, "must be 1 to 65536, not -32"),
        (f"{UNET}.channel_mult", [1] * 1_000_000, f"has 1000000 entries, more than {LEVELS}"),
        (f"{UNET}.attention_resolutions", [1] * 9, "has 9 entries"),
        (f"{STAGE}.embed_dim", 10**6, "must be 1 to 65536"),
        (f"{STAGE}.ddconfig.z_channels", 2**40, "must be 1 to 65536"),
        (f"{TEXT}.text_config.num_hidden_layers", 10**7, "must be 1 to 128"),
        ("timesteps", 10**12, "must be 2 to 100000"),
        ("image_size", 10**12, "must be 1 to 1024"),
        ("scale_factor", 0, "must be 1e-06 to 1000000.0"),
        ("scale_factor", float("nan"), "not nan"),
        ("linear_end", float("inf"), "must be 0 to 1, not inf"),
    ],
)
def test_a_size_beyond_its_limit_is_named_with_it(key: str, value: object, word: str) -> None:
    tree = bundled().tree
    *sections, name = key.split(".")
    at: Any = tree["model"]["params"]
    for section in sections:
        at = at[section]
    at[name] = value
    with pytest.raises(ConfigError) as caught:
        Config("x.yaml", tree)
    assert f"x.yaml: model.params.{key}" in str(caught.value)
    assert word in str(caught.value)


@pytest.mark.parametrize("name", ["timesteps", "log_every_t"])
def test_a_number_too_long_to_be_written_down(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"params\.{name} must be .* not a far larger number"):
        parse_config(f"model: {{params: {{{name}: 0x{'f' * 6000}}}}}", "x.yaml")


def test_a_size_that_the_command_line_sets(capsys: pytest.CaptureFixture[str]) -> None:
    setting = f"model.params.{UNET}.num_res_blocks=1000000000"
    assert run(["txt2img", "--prompt", "x", "--set", setting]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "num_res_blocks must be 0 to 8, not 1000000000" in error


def test_a_default_size_of_images() -> None:
    with pytest.raises(ConfigError, match=r"sampling\.width must be 1 to 65536"):
        override(bundled(), ["sampling.width=100000000"])


def test_every_number_of_a_target_has_a_limit() -> None:
    from ldm.models.registry import TARGETS

    taken = [spec.parameters.takes for spec in TARGETS.values()]
    numbers = {
        name
        for takes in (*taken, _DDCONFIG.takes, SCHEDULE.takes)
        for name, kind in takes.items()
        if {int, float, list} & set(kind)
    }
    for kind in (TextConfig, OpenTextConfig, OpenVisionConfig):
        numbers |= {field.name for field in fields(kind) if field.type == "int"}
    assert len(numbers) > 40
    assert numbers - SIZES.keys() - MEASURES.keys() == UNBOUNDED
