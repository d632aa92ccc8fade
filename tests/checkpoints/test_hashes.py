"""The hashes of model files, by their definitions, and their cache."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from ldm.checkpoints import hashes
from ldm.checkpoints.hashes import find_by_hash, hashes_of


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def safetensors(path: Path, length: int, **metadata: str) -> bytes:
    """Write a file with one tensor; returns the tensor's bytes."""
    numbers = (bytes(range(256)) * (length // 256 + 1))[:length]
    plan = {
        "__metadata__": metadata,
        "x": {"dtype": "U8", "shape": [length], "data_offsets": [0, length]},
    }
    head = json.dumps(plan).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + numbers)
    return numbers


def test_each_kind_of_hash(home: Path) -> None:
    path = home / "a.safetensors"
    numbers = safetensors(path, 2_500_000)
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    found = hashes_of(path)
    assert found.sha256 == sha256
    assert found.autov1 == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    assert found.autov2 == sha256[:10]
    assert found.autov3 == hashlib.sha256(numbers).hexdigest()[:12]
    safetensors(path, 2_500_000, title="edited")
    edited = hashes_of(path)
    assert edited.autov3 == found.autov3
    assert edited.sha256 != found.sha256


def test_other_files_have_no_autov3(home: Path) -> None:
    path = home / "a.ckpt"
    path.write_bytes(b"PK\x03\x04 and more")
    assert hashes_of(path).autov3 is None
    assert hashes_of(path).autov1 == "e3b0c442"  # of nothing


def test_the_cache_is_used_until_the_file_changes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home / "a.safetensors"
    safetensors(path, 1000)
    first = hashes_of(path)
    monkeypatch.setattr(hashes, "_digests", lambda _: pytest.fail("the file was read again"))
    assert hashes_of(path) == first
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    safetensors(path, 1000, title="x")
    os.utime(path, ns=(1, 1))
    assert hashes_of(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    (home / "cache" / "ldm" / "hashes.json").write_text("[1")
    assert hashes_of(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_found_by_any_of_its_hashes(home: Path) -> None:
    paths = [home / f"{name}.safetensors" for name in "ab"]
    safetensors(paths[0], 2_500_000, title="a")
    safetensors(paths[1], 2_600_000, title="longer")
    found = hashes_of(paths[1])
    for digest in (found.sha256, found.autov1, found.autov2, str(found.autov3), found.tensors):
        assert find_by_hash(str(digest).upper(), [home / "none.ckpt", *paths]) == paths[1]
    assert find_by_hash("0" * 10, paths) is None
    assert find_by_hash("", paths) is None
