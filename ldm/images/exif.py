"""EXIF of image files that have no text chunks: the `parameters` text, and our record.

The text is in the UserComment, as AUTOMATIC1111's web UI writes it (modules/images.py): UNICODE in
UTF-16 with the high byte first. The record is in the MakerNote, which EXIF leaves to the program.
"""

from __future__ import annotations

import struct

_EXIF_IFD, _USER_COMMENT, _MAKER_NOTE = 0x8769, 0x9286, 0x927C
_LONG, _UNDEFINED = 4, 7
_START = b"Exif\0\0"
_OURS = b"ldm\0"


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


def exif_texts(exif: bytes) -> dict[str, str]:
    """The texts `parameters` (the UserComment) and `ldm` (our record) of an EXIF block.

    The block may have its head or not. One that is damaged has no texts.
    """
    from PIL import Image

    if not exif:
        return {}
    loaded = Image.Exif()
    try:
        loaded.load(exif if exif.startswith(_START) else _START + exif)
        entries = loaded.get_ifd(_EXIF_IFD)
        comment, note = entries.get(_USER_COMMENT), entries.get(_MAKER_NOTE)
    except Exception:  # noqa: BLE001  (Pillow fails in a dozen ways on damaged metadata)
        return {}
    texts = {}
    if text := _comment(comment):
        texts["parameters"] = text
    if isinstance(note, bytes) and note.startswith(_OURS):
        texts["ldm"] = note[len(_OURS) :].decode("ascii", "replace")
    return texts


def _comment(content: object) -> str:
    """The text of a UserComment (EXIF 2.3, 4.6.5): UTF-16 of either byte order, ASCII or UTF-8."""
    if isinstance(content, str):
        return content.strip("\0 ")
    if not isinstance(content, bytes):
        return ""
    kind, text = content[:8], content[8:]
    if kind == b"UNICODE\0":
        return text.decode(_byte_order(text), "replace").strip("\ufeff\0 ")
    if kind not in (b"ASCII\0\0\0", bytes(8)):
        text = content
    return text.decode("utf-8", "replace").strip("\0 ")


def _byte_order(text: bytes) -> str:
    """The codec of UTF-16: by its mark, else by the place of most zeros, the high bytes."""
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    return "utf-16-le" if text[1::2].count(0) > text[::2].count(0) else "utf-16-be"
