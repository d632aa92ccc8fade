"""The record of finished images: a line for each, in `manifest.jsonl` beside them.

An image is known by its fingerprint: a hash of what it is made from. A line is written in one
piece, and reaches the disk, after its image has; of a line that was cut short nothing is read.

    {"fingerprint": ..., "path": "samples/00000.png", "seed": 7, "sha256": ...}
    {"run": ..., "seed": 7}      the seed that was drawn for a run
    {"run": ..., "complete": ["samples/00000.png", ...]}
                                 a run whose images cannot be distinguished before they are made
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ldm.errors import JobError
from ldm.jobs.job import Job, to_record
from ldm.jobs.templates import is_inside

NAME = "manifest.jsonl"
# Left out of fingerprints, so that those of old images stand when jobs have another field.
_DEFAULTS = to_record(Job())


def fingerprint(job: Job, row: int, model: str, inputs: Mapping[str, str]) -> str:
    """The hash of what an image is made from: its batch's job, its row there, the model's hash
    and those of the files it reads.

    Where each image has noise of its own, the others of its batch do not count.
    """
    if job.noise == "image" and not job.fixed_code:
        text, seed = job.texts()[row], job.image_seeds()[row]
        named = {"classes": (text,)} if job.classes else {"prompt": text, "prompts": ()}
        mixed = job.variation_seeds()[row] if job.variation_seed is not None else None
        alone: dict[str, Any] = {
            "seeds": None,
            "seed_step": 1,
            "seed": seed,
            "variation_seed": mixed,
        }
        job, row = replace(job, n_samples=1, n_iter=1, draw_rows=0, **alone, **named), 0
    entry = {k: v for k, v in to_record(job).items() if v != _DEFAULTS.get(k)}
    return hash_of({"job": entry, "row": row, "model": model, "inputs": dict(inputs)})


def hash_of(content: Any) -> str:
    """32 hexadecimal digits for a value of JSON, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass
class Manifest:
    """The lines of a folder; other processes may write to them at the same time.

    `paths` are the images that have a line, relative to the folder.
    """

    folder: Path
    paths: set[str] = field(default_factory=set)
    _done: dict[str, list[str]] = field(default_factory=dict)
    _runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    _offset: int = 0

    @classmethod
    def open(cls, folder: Path) -> Manifest:
        """The manifest of a folder, which may not exist yet; raises JobError."""
        manifest = cls(folder)
        manifest._read()
        return manifest

    def done(self, fingerprint: str, taken: int = 0) -> Path | None:
        """The image of a fingerprint, if it is still there; `taken` are passed over.

        There may be several: the same was asked for twice.
        """
        self._read()
        paths = (self.folder / name for name in self._done.get(fingerprint, ()))
        return next(islice((path for path in paths if path.is_file()), taken, None), None)

    def missing(self, fingerprint: str) -> Path | None:
        """The first file that an image of a fingerprint had, where it was deleted since."""
        paths = (self.folder / name for name in self._done.get(fingerprint, ()))
        return next((path for path in paths if not os.path.lexists(path)), None)

    def add(self, fingerprint: str, path: Path, seed: int, *, write: bool = True) -> None:
        """Note an image that is in its place; not `write`: here alone."""
        name = self._name(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entry = {"fingerprint": fingerprint, "path": name, "seed": seed, "sha256": digest}
        if write:
            self._append(entry)
        else:
            self._take(json.dumps(entry).encode())

    def has(self, path: Path) -> bool:
        """Whether an image has a line."""
        return self._name(path) in self.paths

    def seed(self, run: str) -> int | None:
        """The seed that was drawn for a run."""
        seed = self._runs.get(run, {}).get("seed")
        return seed if type(seed) is int else None

    def complete(self, run: str) -> tuple[Path, ...]:
        """The images of a run, in order, if all were made and still exist."""
        self._read()
        names = self._runs.get(run, {}).get("complete")
        if not isinstance(names, list):
            return ()
        if not all(isinstance(name, str) and name in self.paths for name in names):
            return ()
        paths = tuple(self.folder / name for name in names)
        return paths if all(path.is_file() for path in paths) else ()

    def note_seed(self, run: str, seed: int) -> None:
        """Note the seed that was drawn for a run."""
        self._append({"run": run, "seed": seed})

    def note_complete(self, run: str, paths: Sequence[Path]) -> None:
        """Note that all images of a run exist."""
        self._append({"run": run, "complete": [self._name(path) for path in paths]})

    # --- the file ---------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The file; it is made with the first line."""
        return self.folder / NAME

    def _name(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.folder)).as_posix()

    def _read(self) -> None:
        """Take in the lines that came since the last time."""
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self._offset = 0  # another file: the folder was deleted and made again
                file.seek(self._offset)
                content = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise JobError(f"{self.path}: cannot be read ({error.strerror})") from None
        whole, newline, _ = content.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        for line in whole.split(b"\n"):
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            return  # a line that was cut short by a kill
        if not isinstance(entry, dict):
            return
        if isinstance(run := entry.get("run"), str):
            self._runs.setdefault(run, {}).update(entry)
        mark, name = entry.get("fingerprint"), entry.get("path")
        if isinstance(mark, str) and isinstance(name, str) and is_inside(name):
            names = self._done.setdefault(mark, [])
            if name not in names:
                names.append(name)
            self.paths.add(name)

    def _append(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, flags, 0o666)
        try:
            with _locked(handle):
                size = os.fstat(handle).st_size
                if size and not self._ends_a_line(handle, size):
                    line = b"\n" + line
                written = os.write(handle, line)
                if written < len(line):  # a full disk gives the first part of it
                    os.write(handle, line[written:])
                os.fsync(handle)
        finally:
            os.close(handle)
        self._read()

    def _ends_a_line(self, handle: int, size: int) -> bool:
        os.lseek(handle, size - 1, os.SEEK_SET)
        return os.read(handle, 1) == b"\n"


@contextmanager
def _locked(handle: int) -> Iterator[None]:
    """Keep other processes from writing, where the system and the file system can do that."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:  # a network file system without locks; one write in one piece has to do
        yield
        return
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)
