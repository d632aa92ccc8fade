"""Files: numbered names that two processes never share, written whole or not at all."""

from __future__ import annotations

import errno
import itertools
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldm.errors import JobError
from ldm.jobs.image_formats import check_name

_count = itertools.count()


class Numbered:
    """Names with a rising number in one folder, such as `00000.png`: the highest there plus one."""

    def __init__(self, folder: Path, prefix: str, digits: int, ending: str = ".png") -> None:
        self.folder, self.ending = folder, ending
        self.prefix = prefix
        self.digits = digits
        self._next: int | None = None

    def write(self, content: bytes) -> Path:
        """Write a new file under the next free number; never replaces one."""
        with _temporary(self.folder, content) as temporary:
            if self._next is None:
                self._next = self._highest() + 1
            while True:
                path = self.folder / f"{self.prefix}{self._next:0{self.digits}d}{self.ending}"
                self._next += 1
                if _claim(temporary, path):
                    return path

    def following(self) -> int:
        """The number of the next file, as far as can be seen now."""
        return self._highest() + 1 if self.folder.is_dir() else 0

    def _highest(self) -> int:
        pattern = re.compile(re.escape(self.prefix) + r"(\d+)\.\w+")
        names = [entry.name for entry in os.scandir(self.folder)]
        matches = [pattern.fullmatch(name) for name in names]
        return max((int(match[1]) for match in matches if match), default=-1)


class Unrepeated(Numbered):
    """Numbered files, where content that a file has already is not written again."""

    def write(self, content: bytes) -> Path:
        """The file of this content: an existing one, or a new one."""
        for path in sorted(self.folder.glob(f"{self.prefix}*{self.ending}")):
            if path.stat().st_size == len(content) and path.read_bytes() == content:
                return path
        return super().write(content)


def write_file(path: Path, content: bytes, *, overwrite: bool) -> None:
    """Write a file whole; raises JobError where it exists already, unless `overwrite`."""
    with _temporary(path.parent, content) as temporary:
        if overwrite:
            os.replace(temporary, path)
        elif not _claim(temporary, path):
            raise JobError(_exists(path))


def check_folder(folder: Path, flag: str) -> None:
    """Try whether files can be written into a folder, or it be made; leaves nothing behind.

    Raises JobError where they cannot.
    """
    there = next(path for path in (folder, *folder.parents, Path()) if os.path.lexists(path))
    try:
        with _temporary(there, b""):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise JobError(f"{flag} {folder}: cannot be written ({reason})") from None


def check_output(
    name: str, images: int, *, overwrite: bool, flag: str = "--output", kind: str | None = None
) -> None:
    """Raise JobError where a single output cannot take the images that a job makes."""
    if images > 1:
        raise JobError(
            f"{flag} takes one image and the job makes {images}; "
            "use --outdir, or --n_samples 1 --n_iter 1"
        )
    if name == "-":
        if sys.stdout.isatty():
            raise JobError(f"{flag} - writes an image: send them to a file or a program")
        return
    path = Path(name)
    if path.is_dir() or name.endswith(("/", os.sep)):
        raise JobError(f"{flag} {name} is a folder; use --outdir for one")
    check_name(name, kind, flag)
    if path.exists() and not overwrite:
        raise JobError(_exists(path, flag))
    check_folder(path.parent, flag)


def _exists(path: Path, flag: str = "--output") -> str:
    return f"{flag} {path}: the file exists; choose another name, or add --overwrite"


@contextmanager
def _temporary(folder: Path, content: bytes) -> Iterator[Path]:
    """A hidden file with this content, on the disk, in a folder made for it; gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".ldm-{os.getpid()}-{next(_count)}.tmp"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


def _claim(temporary: Path, path: Path) -> bool:
    """Give a file its name if that is free: by a hard link, which never replaces anything."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS):
            raise
        return _claim_without_links(temporary, path)
    return True


def _claim_without_links(temporary: Path, path: Path) -> bool:
    """The same on file systems without hard links: an empty file holds the name for a moment."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        return False
    os.replace(temporary, path)
    return True
