"""YAML reading, dotted overrides, and one-line complaints."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.checkpoints.config import Config, override, parse_config, read_config, resource
from ldm.errors import ConfigError

TEXT = "model:\n  target: a.B\n  params:\n    scale_factor: 0.18215\n    ch_mult: [1, 2]\n"


def test_plain_containers() -> None:
    config = parse_config(TEXT, "x.yaml")
    params = {"scale_factor": 0.18215, "ch_mult": [1, 2]}
    assert config == Config("x.yaml", {"model": {"target": "a.B", "params": params}})
    assert type(config.tree["model"]["params"]["ch_mult"]) is list


def test_anchors_and_interpolations_are_resolved() -> None:
    tree = parse_config("a: &x [1]\nb: *x\nc: ${a}\n", "x.yaml").tree
    assert tree == {"a": [1], "b": [1], "c": [1]}


def test_override_reads_values_as_yaml_and_leaves_the_original_alone() -> None:
    config = parse_config(TEXT, "x.yaml")
    settings = ["scale_factor=0.2", "ch_mult=[1]", "new=null"]
    changed = override(config, [f"model.params.{setting}" for setting in settings])
    assert changed.tree["model"]["params"] == {"scale_factor": 0.2, "ch_mult": [1], "new": None}
    assert config.tree["model"]["params"]["scale_factor"] == 0.18215
    assert changed.source == "x.yaml"


@pytest.mark.parametrize("setting", ["nonsense", "=1", "a..b=1", "a=[1"])
def test_a_bad_override_is_one_line(setting: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(parse_config(TEXT, "x.yaml"), [setting])
    assert "\n" not in str(caught.value)
    assert setting in str(caught.value)


def test_complaints_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such YAML file"):
        read_config(tmp_path / "none.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="binary"):
        read_config(binary)
    with pytest.raises(ConfigError, match="sections"):
        parse_config("- 1\n- 2\n", "list.yaml")


@given(st.text())
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    try:
        tree = parse_config(text, "fuzz.yaml").tree
    except ConfigError as error:
        tree = {"complaint": str(error)}
    assert isinstance(tree, dict)
    assert "\n" not in tree.get("complaint", "")


def test_packaged_configs_exist() -> None:
    assert (resource("configs") / "stable-diffusion").is_dir()
