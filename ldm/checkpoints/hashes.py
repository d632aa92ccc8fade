"""The hashes by which other programs and Civitai know a model file.

SHA-256 is that of the whole file, and AutoV2 its first 10 digits. AutoV1, of 8 digits, is that of
64 KiB of the file. AutoV3, of 12 digits, is that of a .safetensors file without its header, so
editing the metadata does not change it.
Sources: AUTOMATIC1111/stable-diffusion-webui, modules/sd_models.py (model_hash) and
modules/hashes.py (calculate_sha256, addnet_hash_safetensors); the names are Civitai's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.checkpoints.weights.header import read_header
from ldm.errors import CheckpointError
from ldm.jobs.cache import cache_folder

_CHUNK = 2**20
_AUTOV1_START, _AUTOV1_LENGTH = 0x100000, 0x10000
_LEAST_DIGITS = 8  # of a hash that names a file


@dataclass(frozen=True)
class Hashes:
    """The hashes of a file, lower-case hexadecimal.

    `tensors` is the SHA-256 of a .safetensors file without its header; None for other files.
    """

    sha256: str
    autov1: str
    tensors: str | None

    @property
    def autov2(self) -> str:
        """The first 10 digits of the SHA-256: AUTOMATIC1111's "Model hash" since 2023."""
        return self.sha256[:10]

    @property
    def autov3(self) -> str | None:
        """The first 12 digits of the SHA-256 of the tensors."""
        return None if self.tensors is None else self.tensors[:12]


def hashes_of(path: Path) -> Hashes:
    """The hashes of a file; raises CheckpointError if it cannot be read.

    Those of the whole file are cached by its path, size and time of change, because a file of some
    GB takes seconds.
    """
    try:
        status = path.stat()
        stamp = {"size": status.st_size, "time": status.st_mtime_ns}
        known = _cached().get(str(path.resolve()), {})
        if {name: known.get(name) for name in stamp} != stamp:
            known = {**stamp, **_digests(path)}
            _store(str(path.resolve()), known)
        return Hashes(known["sha256"], autov1(path), known["tensors"])
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CheckpointError(f"{path}: cannot be read ({reason})") from None


def autov1(path: Path) -> str:
    """The first 8 digits of the SHA-256 of the 64 KiB at 1 MiB.

    It is the same (e3b0c442) for all files that end before. Raises OSError.
    """
    with path.open("rb") as file:
        file.seek(_AUTOV1_START)
        return hashlib.sha256(file.read(_AUTOV1_LENGTH)).hexdigest()[:8]


def find_by_hash(digest: str, paths: Iterable[Path]) -> Path | None:
    """The first of the files that a hash of any kind, or its first digits, belongs to.

    Eight digits are an AutoV1, or the short hash in the records of this program; for longer ones
    the files are read whole, unless their hashes are cached. Files that cannot be read are skipped.
    """
    return next((path for path in paths if is_hash_of(digest, path)), None)


def is_hash_of(digest: str, path: Path) -> bool:
    """Whether a hash of any kind, or at least 8 of its first digits, belongs to a file."""
    digest = digest.strip().lower().removeprefix("0x")
    if len(digest) < _LEAST_DIGITS:
        return False
    try:
        if len(digest) == _LEAST_DIGITS:
            return digest == read_header(path).short_hash
        hashes = hashes_of(path)
    except CheckpointError:
        return False
    return hashes.sha256.startswith(digest) or (hashes.tensors or "").startswith(digest)


def _digests(path: Path) -> dict[str, str | None]:
    """The SHA-256 of a file and of its tensors, in one pass."""
    whole, tensors = hashlib.sha256(), hashlib.sha256()
    with path.open("rb") as file:
        start = file.read(9)
        header = 8 + int.from_bytes(start[:8], "little") if start[8:] == b"{" else None
        file.seek(0)
        at = 0
        while chunk := file.read(_CHUNK):
            whole.update(chunk)
            if header is not None and at + len(chunk) > header:
                tensors.update(chunk[max(0, header - at) :])
            at += len(chunk)
    has_tensors = header is not None and header <= at
    return {"sha256": whole.hexdigest(), "tensors": tensors.hexdigest() if has_tensors else None}


def _cache_file() -> Path:
    return cache_folder() / "hashes.json"


def _cached() -> dict[str, dict[str, Any]]:
    """The cached entries by path; none if the cache is missing or damaged."""
    try:
        entries = json.loads(_cache_file().read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(entries, dict):
        return {}
    fields = {"sha256", "tensors", "size", "time"}
    return {k: v for k, v in entries.items() if isinstance(v, dict) and v.keys() == fields}


def _store(path: str, entry: dict[str, Any]) -> None:
    """Put an entry into the cache."""
    file = _cache_file()
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    with suppress(OSError):  # without a cache, the file is only read again
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(_cached() | {path: entry}, indent=1), encoding="utf-8")
        part.replace(file)
