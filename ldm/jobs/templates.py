"""File names from a template: `{index:05d}-{seed}-{prompt:.40}.png`, `image-%05d.png`.

Fields use Python's format syntax; `%05d` means `{index:05d}`, and `{{` is a literal brace. Text
in a name is made safe for every file system: no separators, no control characters, no names
reserved by Windows, and a limited length.
"""

from __future__ import annotations

import os
import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from ldm.errors import JobError
from ldm.jobs.job import Job
from ldm.jobs.options import nearest

# The fields of a template, and their meaning.
FIELDS: Mapping[str, str] = {
    "index": "number of the image in the run, from 0",
    "job": "number of its job in the run, from 0",
    "seed": "its own seed",
    "prompt": "its prompt, or its class",
    "negative": "its negative prompt",
    "task": "its task, such as txt2img",
    "width": "its width in pixels",
    "height": "its height in pixels",
    "steps": "number of sampling steps",
    "scale": "guidance scale",
    "strength": "denoising strength",
    "sampler": "name of the sampler",
    "model": "name of the checkpoint",
    "input": "name of its input image, without extension",
}
LONGEST = 143  # bytes of a name, the limit of encrypted home folders (eCryptfs); others take 255
_TEXTS = ("prompt", "negative", "model", "input", "sampler", "task")
_WIDEST = 3  # digits of a width or a precision; more would let a job file exhaust memory
_PERCENT = re.compile(r"%(0\d+)?d")
_UNSAFE = re.compile(r'[\s<>:"/\\|?*\x00-\x1f\x7f]+')
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\..*)?$")


@dataclass(frozen=True)
class Piece:
    """Literal text and the field after it, with its format; `field` is empty at the end."""

    words: str
    field: str = ""
    spec: str = ""


@dataclass(frozen=True)
class Template:
    """A file name with fields; without any, it names a single file."""

    text: str
    pieces: tuple[Piece, ...]

    @property
    def fields(self) -> set[str]:
        """The fields in use."""
        return {piece.field for piece in self.pieces if piece.field}

    @property
    def folder(self) -> Path:
        """The folder that all names share."""
        if not self.fields:
            return Path(self.pieces[0].words if self.pieces else "").parent
        return Path(os.path.dirname(self.pieces[0].words))

    def name(self, values: Mapping[str, Any]) -> Path:
        """The path for the values of all fields; text is truncated if a name gets too long."""
        for longest in range(LONGEST, -1, -1):
            path = Path(*(_safe_part(part) for part in self._parts(values, longest)))
            if all(len(os.fsencode(part)) <= LONGEST for part in path.parts):
                return path
        raise JobError(f"--output {self.text}: the name exceeds {LONGEST} bytes; shorten it")

    def _parts(self, values: Mapping[str, Any], longest: int) -> tuple[str, ...]:
        text = ""
        for piece in self.pieces:
            value = values[piece.field] if piece.field else None
            written = "" if value is None else _formatted(self.text, piece, value)
            if isinstance(value, str):
                written = safe(written)[:longest].rstrip("_. -")
            text += piece.words + written
        return PurePath(text).parts


def parse(text: str) -> Template:
    """Parse a template; raises JobError for an unknown field or an invalid format."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise JobError(f"--output {text!a}: contains half of a character") from None
    quoted = _PERCENT.sub(lambda match: f"{{index:{match[1] or ''}d}}", text)
    pieces: list[Piece] = []
    try:
        parsed = list(string.Formatter().parse(quoted))
    except ValueError as error:
        raise JobError(f"--output {text}: {error}; double a brace to use it literally") from None
    for words, field, spec, conversion in parsed:
        if field is None:
            pieces.append(Piece(words))
            continue
        if field not in FIELDS:
            known = ", ".join(FIELDS)
            hint = nearest(field, FIELDS)
            raise JobError(f"--output {text}: unknown field {{{field}}}{hint} (known: {known})")
        if conversion or not _is_plain(spec or "", field in _TEXTS):
            raise JobError(
                f"--output {text}: {{{field}}} needs a plain format, such as {{seed:08d}}"
            )
        piece = Piece(words, field, spec or "")
        sample = "x" if field in _TEXTS else 1.0 if field in ("scale", "strength") else 1
        _formatted(text, piece, sample)
        pieces.append(piece)
    return Template(text, tuple(pieces))


def values_of(job: Job, row: int, *, index: int, number: int, model: str) -> dict[str, Any]:
    """The values of all fields for one image: row `row` of a batch's job."""
    source = job.init_img or (job.images[0] if job.images else "")
    return {
        "index": index,
        "job": number,
        **job.image_values(row),
        "task": job.task,
        "strength": job.strength,
        "model": model,
        "input": PurePath(source).stem,
    }


def safe(text: str) -> str:
    """Make text safe as part of a name: separators and invisible characters become one `_`."""
    text = unicodedata.normalize("NFC", text)
    text = _UNSAFE.sub("_", text)
    text = "".join(char for char in text if unicodedata.category(char) not in ("Cc", "Cf", "Cs"))
    return re.sub("__+", "_", text).strip("_. -")


def is_inside(name: str) -> bool:
    """Whether a name from a job file stays inside its folder, on every system."""
    windows = PureWindowsPath(name)
    rooted = windows.drive or windows.root or PurePosixPath(name).root
    return bool(windows.parts) and not rooted and ".." not in windows.parts and "\0" not in name


def check_names(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Raise JobError if two images would have the same name, or one would replace a file."""
    seen: dict[str, Path] = {}
    for path in paths:
        key = unicodedata.normalize("NFC", str(path)).casefold()  # as some file systems compare
        if key in seen:
            raise JobError(f"--output: two images would be {path}; put {{index}} into the name")
        seen[key] = path
        if path.exists() and not overwrite:
            raise JobError(
                f"--output {path}: the file exists; choose another name, or add --overwrite"
            )


def _formatted(text: str, piece: Piece, value: Any) -> str:
    try:
        return format(safe(value) if isinstance(value, str) else value, piece.spec)
    except (ValueError, TypeError) as error:
        raise JobError(f"--output {text}: {{{piece.field}:{piece.spec}}}: {error}") from None


def _is_plain(spec: str, is_text: bool) -> bool:
    """Whether a format adds nothing to a name but the value, at a limited width."""
    if set(spec) & set("{}/\\\0") or re.search(rf"\d{{{_WIDEST + 1},}}", spec):
        return False
    return is_text or not spec.endswith("c")  # "c" could turn a number into any character


def _safe_part(part: str) -> str:
    """Make one part of a path valid on every file system."""
    if part in (".", "..") or part.endswith(("/", "\\", ":")):
        return part
    stem = part.rstrip(". ")
    return f"_{stem}" if _RESERVED.match(stem) or not stem else stem
