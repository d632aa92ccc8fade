"""Model folders of ours and of other programs, and the files in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ldm.checkpoints.folders import model_files, searching
from ldm.checkpoints.locate import find_checkpoint
from ldm.errors import CheckpointError, ConfigError, UsageError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("LDM_MODELS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def test_the_layout_of_automatic1111() -> None:
    root = Path("webui")
    touch("webui/models/Stable-diffusion/anime/x.safetensors", "webui/models/Lora/x.safetensors")
    touch("webui/models/VAE/x.ckpt", "webui/embeddings/y.safetensors", "webui/venv/z.ckpt")
    with searching([str(root)]):
        kinds = {f.path.as_posix(): f.kind for f in model_files() if f.path.is_relative_to(root)}
        assert find_checkpoint("x")[0] == root / "models/Stable-diffusion/anime/x.safetensors"
        assert find_checkpoint("VAE/x")[0] == root / "models/VAE/x.ckpt"
    assert kinds == {
        "webui/models/Stable-diffusion/anime/x.safetensors": "checkpoint",
        "webui/models/Lora/x.safetensors": "LoRA",
        "webui/models/VAE/x.ckpt": "autoencoder",
        "webui/embeddings/y.safetensors": "embedding",
    }
    with pytest.raises(CheckpointError, match="no such file"):
        find_checkpoint("x")


def test_the_paths_of_comfyui(monkeypatch: pytest.MonkeyPatch) -> None:
    touch("data/sd/big.ckpt", "data/more/big.ckpt", "data/vae/v.safetensors", "own/o.ckpt")
    Path("extra_model_paths.yaml").write_text(
        "#unused:\nempty:\nmine:\n  checkpoints: own\n"
        "shared:\n  base_path: data\n  is_default: true\n"
        "  checkpoints: |\n    more\n    sd\n  vae: vae/\n"
    )
    monkeypatch.setenv("LDM_MODELS", os.pathsep.join(["nowhere", "extra_model_paths.yaml"]))
    found = [(f.path.as_posix(), f.kind) for f in model_files()][:4]
    assert found == [
        ("data/more/big.ckpt", "checkpoint"),
        ("data/sd/big.ckpt", "checkpoint"),
        ("data/vae/v.safetensors", "autoencoder"),
        ("own/o.ckpt", "checkpoint"),
    ]
    assert find_checkpoint("big")[0] == Path("data/more/big.ckpt")


@pytest.mark.parametrize("text", ["- a\n", "a: b\n", "a: {checkpoints: [x]}\n", "a: ["])
def test_a_yaml_that_is_none_of_comfyuis(text: str) -> None:
    Path("x.yaml").write_text(text)
    with searching(["x.yaml"]), pytest.raises(ConfigError, match=r"x\.yaml"):
        model_files()


def test_missing_folders_and_circles() -> None:
    with pytest.raises(UsageError, match="--models-dir nowhere"), searching(["nowhere"]):
        pass
    touch("models/a.ckpt")
    Path("models/again").symlink_to(Path.cwd() / "models")
    assert [f.name for f in model_files()].count("a") == 1
