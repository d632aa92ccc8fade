"""Texts in EXIF, XMP and pixels, as other programs write them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.errors import ImageError
from ldm.images.exif import exif_texts, xmp_texts
from ldm.images.hidden import hidden_texts
from ldm.images.texts import read_texts
from tests.foreign_images import NOVELAI, WEBUI, write_exif, write_hidden, write_png, xmp


@pytest.mark.parametrize("ending", ["jpg", "webp", "png"])
@pytest.mark.parametrize("text", [WEBUI, "猫の絵, a cat\nSteps: 4", "a cät"])
@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le", "utf-8", "ascii"])
def test_user_comments(tmp_path: Path, ending: str, text: str, order: str) -> None:
    code = b"ASCII\0\0\0" if order == "ascii" else b"UNICODE\0"
    content = code + text.encode("utf-8" if order == "ascii" else order)
    path = write_exif(tmp_path / f"a.{ending}", content)
    assert read_texts(path)["parameters"] == text


def test_comfy_in_webp(tmp_path: Path) -> None:
    path = write_exif(tmp_path / "a.webp", Make='workflow:{"b": 2}', Model='prompt:{"a": 1}')
    assert read_texts(path) == {"prompt": '{"a": 1}', "workflow": '{"b": 2}'}


def test_xmp(tmp_path: Path) -> None:
    comment = json.dumps({"c": 'a "cat" <3 & more'})
    path = write_png(tmp_path / "a.png", {"XML:com.adobe.xmp": xmp(comment)})
    assert read_texts(path)["XMP UserComment"] == comment
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", xmp=xmp(comment).encode())
    assert read_texts(tmp_path / "a.jpg")["XMP UserComment"] == comment
    assert xmp_texts('<x exif:UserComment="{&quot;c&quot;: 1}"/>') == {
        "XMP UserComment": '{"c": 1}'
    }
    assert xmp_texts("exif:UserComment" * 60_000) == {}


@pytest.mark.parametrize("where", ["alpha", "colour"])
def test_hidden_in_the_lowest_bits(tmp_path: Path, where: str) -> None:
    path = write_hidden(tmp_path / "a.png", NOVELAI, where)
    assert read_texts(path) == {}
    assert hidden_texts(path) == NOVELAI
    assert hidden_texts(write_hidden(path, WEBUI, where)) == {"parameters": WEBUI}


def test_damaged_hidden_texts(tmp_path: Path) -> None:
    path = write_hidden(tmp_path / "a.png", "x" * 2**25)  # more than is read
    assert len(hidden_texts(path)["parameters"]) == 2**24
    pixels = np.array(Image.open(path))
    pixels[:, 8:, 3] = 254
    Image.fromarray(pixels).save(path)
    assert hidden_texts(path).get("parameters", "").strip("x") == ""
    Image.new("RGBA", (8, 8)).save(path)
    assert hidden_texts(path) == {}


def test_damaged_exif_is_no_text(tmp_path: Path) -> None:
    whole = Image.Exif()
    whole.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0a cat"
    content = whole.tobytes()
    assert exif_texts(content) == {"parameters": "a cat"}
    for end in range(0, len(content), 3):
        assert exif_texts(content[:end]) in ({}, {"parameters": "a cat"})
    for at in range(6, len(content)):
        exif_texts(content[:at] + b"\xff" + content[at + 1 :])


def test_our_record_is_in_the_maker_note(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x927C] = b'ldm\0{"ldm": "1"}'
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif.tobytes())
    assert read_texts(tmp_path / "a.jpg") == {"ldm": '{"ldm": "1"}'}


def test_huge_chunks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    head = b"RIFF" + struct.pack("<I", 2**28) + b"WEBP" + b"EXIF" + struct.pack("<I", 2**27)
    path.write_bytes(head)
    with pytest.raises(ImageError, match="bytes of text"):
        read_texts(path)
    path.write_bytes(head[:16] + struct.pack("<I", 0) * 50_000)  # chunks of no length
    assert read_texts(path) == {}
