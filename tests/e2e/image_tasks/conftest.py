"""Tiny models and an image of an odd size for every test here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_images import QUICK, place, save, scene, square_mask


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """The flags for a tiny model by its name; each is made once."""
    folder = tmp_path_factory.mktemp("models")

    def flags(name: str) -> list[str]:
        path = folder / f"{name}.safetensors"
        return ["--model", str(path if path.exists() else place(name, folder)), *QUICK]

    return flags


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an image of an odd size, its mask and its depth."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LDM_MODELS", raising=False)
    save(tmp_path / "in.png", scene(75, 50))
    save(tmp_path / "mask.png", square_mask(75, 50))
    save(tmp_path / "depth.png", scene(75, 50)[..., 0])
    return tmp_path
