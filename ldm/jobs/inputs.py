"""Parse the arguments that name input images and outpainted sides. No numpy."""

from __future__ import annotations

import codecs
import glob
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ldm.errors import ImageError, JobError

FORMATS = "PNG, JPEG, WebP, BMP, TIFF or GIF"
LARGEST_OUTPAINT = 8192

_SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".gif"}
    | {".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".pfm"}
)
_KINDS = (
    (b"\x89PNG\r\n\x1a\n", "a damaged PNG"),
    (b"\xff\xd8\xff", "a damaged JPEG"),
    (b"GIF8", "a damaged GIF"),
    (b"BM", "a damaged BMP"),
    (b"II*\0", "a damaged TIFF"),
    (b"MM\0*", "a damaged TIFF"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"8BPS", "a Photoshop file"),
    (b"gimp xcf", "a GIMP file"),
    (b"\x76\x2f\x31\x01", "an OpenEXR file"),
    (b"#?RADIANCE", "a Radiance HDR file"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"PK\x03\x04", "a ZIP archive or a checkpoint"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x93NUMPY", "a numpy array"),
    (b"\x1a\x45\xdf\xa3", "a video"),
    (b"version https://git-lfs", "a Git LFS pointer to a file that was not fetched"),
)


class Sides(NamedTuple):
    """Pixels on each side of an image, none negative."""

    left: int
    top: int
    right: int
    bottom: int


def parse_outpaint(text: str) -> Sides:
    """Parse "left,top,right,bottom", the pixels to add on each side; raises JobError."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise JobError(
            "--outpaint must be four whole numbers of pixels, left,top,right,bottom "
            f"(such as 0,0,256,0), not {text!r}"
        )
    if not 0 <= min(numbers) <= max(numbers) <= LARGEST_OUTPAINT:
        raise JobError(f"--outpaint takes 0 to {LARGEST_OUTPAINT} pixels per side, not {text!r}")
    if not any(numbers):
        raise JobError(f"--outpaint {text} adds nothing; extend at least one side")
    return Sides(*numbers)


def check_file(path: Path | str) -> Path:
    """Check that a path is a readable regular file and not empty; raises ImageError otherwise."""
    if not str(path):
        raise ImageError("an image has an empty name; give the path of a file")
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{path}: is a folder; name an image in it")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path}: not a regular file; save the image to a file first")
        if status.st_size == 0:
            raise ImageError(f"{path}: the file is empty; make or download it again")
        path.open("rb").close()
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    return path


def unreadable(path: Path, error: OSError | ValueError) -> ImageError:
    """The error for a file that the system does not let us read."""
    reason = getattr(error, "strerror", None) or str(error)
    return ImageError(f"{path}: cannot be read ({reason}); check the path and its permissions")


def digest(path: Path | str) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file's bytes; raises ImageError."""
    path = check_file(path)
    total = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    except OSError as error:
        raise unreadable(path, error) from None
    return total.hexdigest()[:16]


def kind(head: bytes) -> str:
    """Guess the kind of a file that is not a readable image, from its first bytes (64 or more)."""
    for start, name in _KINDS:
        if head.startswith(start):
            return name
    if head[:4] == b"RIFF":
        return {b"WEBP": "a damaged WebP", b"AVI ": "a video", b"WAVE": "a sound"}.get(
            head[8:12], "a media file"
        )
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in (b"avif", b"avis"):
            return "an AVIF image that is damaged or that this Pillow cannot read"
        return "a HEIC image" if brand in (b"heic", b"heix", b"mif1", b"msf1") else "a video"
    if not any(head):
        return "nothing but zeros"
    try:
        # Incrementally, because the last character may be incomplete.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return "data of an unknown kind"
    text = text.lstrip("\ufeff \t\r\n").lower()
    if "\0" in text:
        return "data of an unknown kind"
    if "<svg" in text:
        return "an SVG drawing"
    if text.startswith(("<!doctype html", "<html")):
        return "a web page"
    return "text"


def expand_inputs(names: Sequence[str]) -> list[Path]:
    """Expand names of files, folders and patterns (`*`, `?`, `[a-z]`, `**`) to files, in order.

    A folder or a pattern stands for its images, recognised by suffix and sorted by path, without
    hidden files; subfolders are not searched. Duplicates are dropped. Raises ImageError for a name
    that matches no image.
    """
    if not names:
        raise ImageError("no input image; give files, folders or patterns such as 'in/*.png'")
    paths: dict[Path, None] = {}
    for name in names:
        paths.update(dict.fromkeys(_expand(name)))
    return list(paths)


def _expand(name: str) -> list[Path]:
    # Patterns arrive quoted, and a shell does not expand "~" inside quotes.
    path = Path(os.path.expanduser(name))
    if path.is_dir() and name:
        return _images(name, _listing(path), "no image in the folder")
    if path.exists() or not glob.has_magic(name):
        return [check_file(path if name else name)]
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
    if not matches:
        raise ImageError(f"{name}: nothing matches this pattern")
    return _images(name, matches, "no image among the matches")


def _listing(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise unreadable(folder, error) from None


def _images(name: str, paths: list[Path], problem: str) -> list[Path]:
    images = sorted(p for p in paths if p.suffix.lower() in _SUFFIXES and p.is_file())
    if not images:
        raise ImageError(f"{name}: {problem} ({FORMATS})")
    return images
