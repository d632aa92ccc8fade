"""Texts in image files: the text chunks of PNG, EXIF and XMP, read without decoding a pixel."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ldm.errors import ImageError
from ldm.images.exif import XMP_KEY, exif_texts, webp_texts, xmp_texts
from ldm.jobs.metadata import Record

_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_EXIF = b"eXIf"
_STARTS = (_PNG, b"\xff\xd8", b"GIF8", b"II*\0", b"MM\0*", b"BM")
_AVIF = (b"ftypavif", b"ftypavis")
_MOST_TEXT = 16 * 2**20  # bytes of all texts in a file, decompressed
_BLOCK = 2**16  # bytes of a chunk that are read at once for the checksum


def is_image(start: bytes) -> bool:
    """Whether the first 12 bytes of a file are those of an image."""
    return start.startswith(_STARTS) or start[8:12] == b"WEBP" or start[4:12] in _AVIF


def read_texts(path: Path) -> dict[str, str]:
    """The texts of an image file by key: those of its chunks, of EXIF and of XMP.

    Raises ImageError for a file that is damaged or not an image. No pixel is decoded, and the
    memory for texts is bounded, whatever the file claims.
    """
    try:
        with path.open("rb") as file:
            start = file.read(12)
            file.seek(0)
            if start.startswith(_PNG):
                return _png_texts(file)
            if start[:4] == b"RIFF" and start[8:] == b"WEBP":
                return webp_texts(file, _MOST_TEXT)  # Pillow would allocate memory for its pixels
            return _header_texts(file)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except Exception as error:
        # Pillow fails in a dozen ways on damaged files.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: cannot be read as an image ({reason})") from error


def read_record(path: Path) -> Record:
    """Read our record from an image; raises ImageError if it has none."""
    texts = read_texts(path)
    if "ldm" not in texts:
        other = "; it has a `parameters` text, see ldm info" if "parameters" in texts else ""
        raise ImageError(f"{path}: no record of ldm in this image{other}")
    try:
        return Record.from_json(texts["ldm"])
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


def _header_texts(file: BinaryIO) -> dict[str, str]:
    """EXIF and XMP in a header; raises an error unless it is that of an image of a valid size."""
    from PIL import Image

    from ldm.images.reading import readable_formats

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        image = Image.open(file, formats=readable_formats())
        _check_size(image.width, image.height)
        if image.format == "TIFF":  # its EXIF is part of its own directory
            image.info["exif"] = image.getexif().tobytes()
    texts: dict[str, str] = {}
    for key, read in (("exif", exif_texts), ("xmp", xmp_texts)):
        content = image.info.get(key)
        if isinstance(content, bytes) and len(content) <= _MOST_TEXT:
            texts |= read(content)
    return texts


def _check_size(width: int, height: int) -> None:
    from ldm.images.reading import LARGEST_PIXELS

    if width * height > LARGEST_PIXELS:
        raise ValueError(f"more than {LARGEST_PIXELS} pixels")


def _png_texts(file: BinaryIO) -> dict[str, str]:
    """The texts of a PNG, whose text chunks may come before or after the pixels."""
    texts: dict[str, str] = {}
    room = _MOST_TEXT
    for kind, content in _chunks(file):
        if kind == b"IHDR":
            _check_size(*struct.unpack(">II", content[:8]))
        elif kind == _EXIF:
            texts |= exif_texts(content)
        elif kind in _TEXTS:
            key, text = _text(kind, content, room)
            room -= len(text)
            texts[key] = text
    return texts | xmp_texts(texts.get(XMP_KEY, ""))


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """The header and the text chunks of a PNG; raises ValueError for a damaged chunk."""
    left = os.fstat(file.fileno()).st_size - file.seek(len(_PNG))
    kind = b""
    while kind != b"IEND":
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("the file is incomplete")
        length, kind = struct.unpack(">I4s", head)
        left -= length + 12
        if left < 0:
            raise ValueError("the file is incomplete")
        wanted = kind in (b"IHDR", _EXIF, *_TEXTS)
        if wanted and length > _MOST_TEXT:
            raise ValueError(f"more than {_MOST_TEXT} bytes of text")
        content, total = b"", zlib.crc32(kind)
        for start in range(0, length, _BLOCK):
            block = file.read(min(_BLOCK, length - start))
            total = zlib.crc32(block, total)
            if wanted:
                content += block
        if struct.unpack(">I", file.read(4)) != (total,):
            raise ValueError(f"a {kind!r} chunk is damaged")
        if wanted:
            yield kind, content


def _text(kind: bytes, content: bytes, room: int) -> tuple[str, str]:
    """The key and text of a chunk, of at most `room` bytes (PNG specification, 11.3.3)."""
    key, _, rest = content.partition(b"\0")
    if kind == b"tEXt":
        return key.decode("latin-1"), _plain(rest)
    if kind == b"zTXt":
        return key.decode("latin-1"), _unpacked(rest[1:], room).decode("latin-1")
    packed, (_, _, text) = rest[:1] == b"\1", rest[2:].split(b"\0", 2)
    return key.decode("latin-1"), (_unpacked(text, room) if packed else text).decode("utf-8")


def _plain(content: bytes) -> str:
    """Text in Latin-1, as the format has it, or in UTF-8, as stable-diffusion.cpp writes it."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _unpacked(content: bytes, room: int) -> bytes:
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(content, max(room, 1))
    if unpacker.unconsumed_tail:
        raise ValueError(f"more than {_MOST_TEXT} bytes of text")
    return text
