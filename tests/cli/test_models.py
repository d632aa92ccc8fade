"""`ldm models`: what lies in the model folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldm.cli.app import run
from tests.cli.test_info import hollow
from tests.golden_keys import golden_shapes


def test_the_models_of_all_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LDM_MODELS", raising=False)
    (tmp_path / "comfy/models/checkpoints").mkdir(parents=True)
    (tmp_path / "comfy/models/vae").mkdir()
    hollow(golden_shapes("sd-v1"), tmp_path / "comfy/models/checkpoints/v1.safetensors")
    hollow({"x": (2,)}, tmp_path / "comfy/models/vae/v.safetensors")
    (tmp_path / "comfy/models/checkpoints/broken.ckpt").write_bytes(b"<html>")
    assert run(["models", "--models-dir", "comfy", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capfd.readouterr().out)["models"]}
    one = rows["checkpoints/v1"]
    assert one["family"] == "Stable Diffusion v1"
    assert one["precision"] == "F16"
    assert one["tasks"] == ["txt2img", "img2img", "inpaint"]
    assert len(one["hash"]) == 8
    assert rows["vae/v"]["kind"] == "autoencoder"
    assert "web page" in rows["checkpoints/broken"]["problem"]
    assert "emoji-128" in rows
    assert run(["models", "--models-dir", "comfy"]) == 0
    assert "checkpoints/v1  " in capfd.readouterr().out
    assert run(["models", "--models-dir", "nowhere"]) == 2
