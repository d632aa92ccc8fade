from __future__ import annotations

import os
from pathlib import Path

import pytest

from ldm.engine.readahead import read_ahead


def test_the_whole_file_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda file, start, size, advice: asked.append((start, size)), False
    )
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, False)
    path = tmp_path / "weights"
    path.write_bytes(bytes(3_000_000))
    thread = read_ahead(path)
    assert thread is not None
    thread.join()
    ends = [0, *(start + size for start, size in asked)]
    assert [start for start, _ in asked] == ends[:-1]
    assert ends[-1] >= 3_000_000


def test_a_file_that_is_gone_is_not_its_matter(tmp_path: Path) -> None:
    thread = read_ahead(tmp_path / "none")
    assert thread is None or thread.join() is None


def test_systems_that_cannot_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    assert read_ahead(tmp_path) is None
