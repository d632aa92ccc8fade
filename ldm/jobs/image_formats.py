"""The formats that images are written in: their names and endings, and the limits of each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ldm.errors import JobError

ENDINGS: dict[str, tuple[str, ...]] = {
    "png": (".png",),
    "jpeg": (".jpg", ".jpeg"),
    "webp": (".webp",),
    "avif": (".avif",),
    "tiff": (".tif", ".tiff"),
}
"""The formats, and the endings of their files; new files get the first one."""
FORMATS = tuple(ENDINGS)
ALL_ENDINGS = tuple(ending for endings in ENDINGS.values() for ending in endings)
LOSSY = ("jpeg", "webp", "avif")
LARGEST_SIDE = {"jpeg": 65_500, "webp": 16_383, "avif": 65_536}
"""Pixels; a wider or higher image does not fit the format (or its encoder)."""
QUALITY = 95


def format_of(name: Path | str) -> str | None:
    """The format of a file by its ending; None for another ending."""
    ending = Path(name).suffix.lower()
    return next((kind for kind, endings in ENDINGS.items() if ending in endings), None)


def ending_of(kind: str | None) -> str:
    """The ending of new files of a format, by default PNG."""
    return ENDINGS[kind or "png"][0]


def with_ending(name: str, kind: str | None) -> str:
    """A name with the ending of a format (PNG by default), unless it has that of one."""
    return name if format_of(name) else f"{name}{ending_of(kind)}"


def check_name(name: str, kind: str | None, flag: str = "--output") -> None:
    """Raise JobError for a name without a known ending, or one that contradicts `kind`."""
    own = format_of(name)
    if own is None:
        raise JobError(f"{flag} {name}: the name must end in {', '.join(ALL_ENDINGS)}")
    if kind is not None and own != kind:
        raise JobError(f"{flag} {name} is not {kind}, as --format-out says; omit one of them")


def check_encoders(kinds: Iterable[str]) -> None:
    """Raise JobError for a format that the installed Pillow cannot write."""
    names = {"jpeg": "jpg", "webp": "webp", "avif": "avif"}
    for kind in kinds:
        if kind not in names:
            continue
        from PIL import features

        if not features.check(names[kind]):
            raise JobError(
                f"this Pillow cannot write {kind}: pip install -U Pillow, or choose another format"
            )
