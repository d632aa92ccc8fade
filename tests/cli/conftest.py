"""A working folder for the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_commands import place_tiny


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose models/ holds a tiny checkpoint with its YAML beside it."""
    place_tiny(tmp_path / "models" / "sub" / "tiny.ckpt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LDM_MODELS", raising=False)
    return tmp_path
