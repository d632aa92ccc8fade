"""Texts in EXIF and XMP, the places that formats other than PNG have for them.

The user comment is the text `parameters`, as in a PNG of AUTOMATIC1111's web UI; the others come
under their own names. Where a program puts its text's name in front of it (`prompt:{...}`), that is
the name. Our record is in the MakerNote.
"""

from __future__ import annotations

import html
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

MOST_XMP = 2**20  # bytes; a longer one is skipped
XMP_KEY = "XML:com.adobe.xmp"
_MOST_CHUNKS = 100_000  # of a WebP; an animated one has a chunk for each frame
_EXIF_IFD = 0x8769
_LONG, _UNDEFINED = 4, 7
_START = b"Exif\0\0"
_USER_COMMENT, _MAKER_NOTE = 0x9286, 0x927C
_OURS = b"ldm\0"
_TAGS = {
    0x010E: "ImageDescription",
    0x010F: "Make",
    0x0110: "Model",
    0x0131: "Software",
    _MAKER_NOTE: "MakerNote",
    _USER_COMMENT: "parameters",
}
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f]")
# Names that ComfyUI and its nodes put in front of a text.
_NAMED = re.compile(r"\s{0,8}(prompt|workflow)\s{0,8}:", re.IGNORECASE)


def write_exif(texts: dict[str, str]) -> bytes:
    """An EXIF block, with its head, of the texts `parameters` and `ldm`; b"" without either.

    It is written here because Pillow gives both entries the type BYTE, which piexif, and with it
    the web UI, does not read; EXIF 2.3 (4.6.5) wants UNDEFINED.
    """
    entries = []
    if "ldm" in texts:
        entries.append((_MAKER_NOTE, _OURS + texts["ldm"].encode("ascii")))
    if "parameters" in texts:
        text = texts["parameters"].encode("utf-16-be", "surrogatepass")
        entries.append((_USER_COMMENT, b"UNICODE\0" + text))
    if not entries:
        return b""
    first = struct.pack(">HHHIII", 1, _EXIF_IFD, _LONG, 1, 26, 0)  # 26: where the next one starts
    table, values = struct.pack(">H", len(entries)), b""
    start = 26 + 2 + 12 * len(entries) + 4
    for tag, value in entries:
        table += struct.pack(">HHII", tag, _UNDEFINED, len(value), start + len(values))
        values += value + b"\0" * (len(value) % 2)
    return _START + b"MM\0*" + struct.pack(">I", 8) + first + table + bytes(4) + values


def exif_texts(content: bytes) -> dict[str, str]:
    """The texts of an EXIF block, with or without its first six bytes; {} for a damaged one."""
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(content)
        entries = {**exif, **exif.get_ifd(_EXIF_IFD)}
    except Exception:  # noqa: BLE001  (a damaged block does not make a damaged image)
        return {}
    texts: dict[str, str] = {}
    note = entries.get(_MAKER_NOTE)
    if isinstance(note, bytes) and note.startswith(_OURS):
        texts["ldm"] = note[len(_OURS) :].decode("ascii", "replace")
        del entries[_MAKER_NOTE]
    for tag, name in _TAGS.items():
        text = _decoded(entries.get(tag))
        named = _NAMED.match(text)
        if named is not None:
            texts[named[1].lower()] = text[named.end() :].strip()
        elif text:
            texts[name] = text
    if texts.get("MakerNote") in ("fooocus", "a1111"):
        texts["fooocus_scheme"] = texts.pop("MakerNote")
    return texts


def xmp_texts(content: bytes | str) -> dict[str, str]:
    """The user comment of an XMP packet, as `XMP UserComment`; {} without one."""
    text = content if isinstance(content, str) else content.decode("utf-8", "replace")
    start = text.find("exif:UserComment")
    if len(text) > MOST_XMP or start < 0:
        return {}
    end = text.find("</exif:UserComment", start)
    inside = text[start + len("exif:UserComment") : end] if end > start else ""
    if not inside:  # an attribute: exif:UserComment="..."
        quoted = re.match(r"\s*=\s*(\"[^\"]*\"|'[^']*')", text[start + len("exif:UserComment") :])
        inside = f">{quoted[1][1:-1]}" if quoted is not None else ""
    plain = html.unescape(re.sub(r"<[^<>]*>", "", inside.partition(">")[2])).strip()
    return {"XMP UserComment": plain} if plain else {}


def webp_texts(file: BinaryIO, most: int) -> dict[str, str]:
    """The texts of a WebP from its chunks; no pixel is decoded. Raises ValueError beyond `most`."""
    texts: dict[str, str] = {}
    for kind, length in _riff_chunks(file):
        if kind not in (b"EXIF", b"XMP "):
            continue
        if length > most:
            raise ValueError(f"more than {most} bytes of text")
        content = file.read(length)
        texts |= exif_texts(content) if kind == b"EXIF" else xmp_texts(content)
    return texts


def _riff_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """The kind and length of every chunk, with the file at its content."""
    at = 12
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return
        kind, length = struct.unpack("<4sI", head)
        yield kind, length
        at += 8 + length + length % 2


def _decoded(value: object) -> str:
    """A value as text; "" for numbers and bytes that are none."""
    if isinstance(value, str):
        return value.strip("\0 ")
    if not isinstance(value, bytes):
        return ""
    code, rest = value[:8], value[8:]
    if code == b"UNICODE\0":
        return _utf16(rest)
    if code in (b"ASCII\0\0\0", bytes(8)):
        return rest.decode("utf-8", "replace").strip("\0 ")
    try:
        return value.decode("utf-8").strip("\0 ")
    except UnicodeDecodeError:
        return ""


def _utf16(content: bytes) -> str:
    """Text in UTF-16 of either byte order, or UTF-8, which some programs write in its place.

    EXIF leaves the order open. Most text has ASCII, whose high bytes are zero.
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", "replace").strip("\0 ")
    even, odd = content[::2].count(0), content[1::2].count(0)
    if not even and not odd:
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            text = "\0"
        if not _CONTROLS.search(text):
            return text.strip()
    order = "utf-16-le" if odd > even else "utf-16-be"
    return content[: len(content) // 2 * 2].decode(order, "replace").strip("\0 ")
