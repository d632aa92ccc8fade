"""Checkpoints and images that strangers made."""

# ruff: noqa: E501 (tables of hostile values)
from __future__ import annotations

import contextlib
import io
import json
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from ldm.errors import UsageError
from ldm.images.reading import read_depth, read_image, read_mask
from ldm.images.texts import read_texts
from ldm.images.writing import encode_png
from ldm.jobs.job import Job
from ldm.jobs.metadata import Record
from tests.fuzz.damage import ODD_NUMBERS, ODD_VALUES, damaged, damaged_json
from tests.fuzz.hostile_files import (
    CKPTS,
    INDEX,
    MEMBERS,
    TENSORS,
    placed,
    read_checkpoint,
    read_our_record,
    zipped,
)
from tests.fuzz.watch import watched

fuzzed = settings(settings.get_profile("fuzz"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module", autouse=True)
def warm(home: Path) -> None:
    """Read something of each kind first, so that nothing is compiled or imported later on."""
    for content in (*CKPTS, *SAFETENSORS):
        read_checkpoint(home, content)
    for content in (*IMAGES, *RECORDS):
        for read in READERS.values():
            with contextlib.suppress(UsageError):
                read(placed(home, content))


# --- checkpoints ----------------------------------------------------------------------------------

SAFETENSORS = [save({k: v.contiguous() for k, v in TENSORS.items()}, {"modelspec.title": "x"})]


@fuzzed
@given(damaged(CKPTS))
def test_ckpts(home: Path, content: bytes) -> None:
    with watched(home):
        read_checkpoint(home, content)


METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
TRICKS = [
    "../data.pkl",
    "/data.pkl",
    "archive/data.pkl",
    "a/../data.pkl",
    "\\data.pkl",
    "archive/x",
]


@fuzzed
@given(
    damaged([each[INDEX] for each in MEMBERS]),
    st.sampled_from(METHODS),
    st.sampled_from([INDEX, *TRICKS]),
)
def test_indices_of_ckpts(home: Path, index: bytes, method: int, name: str) -> None:
    others = {member: data for member, data in MEMBERS[0].items() if member != INDEX}
    content = zipped({**others, name: index}, method)
    with watched(home):
        read_checkpoint(home, content)


# An opcode with an argument that fits it, as bytes.
_NUMBERS = st.sampled_from([n % 2**64 for n in ODD_NUMBERS]) | st.integers(0, 300)
_GLOBALS = st.sampled_from(
    ["posix system", "builtins eval", "builtins exec", "collections OrderedDict", "torch FloatStorage",
     "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "builtins getattr"]
)  # fmt: skip


def _opcode(name: str) -> st.SearchStrategy[bytes]:
    code = next(op.code for op in pickletools.opcodes if op.name == name).encode("latin-1")
    sized: dict[str, st.SearchStrategy[bytes]] = {
        "GLOBAL": _GLOBALS.map(lambda words: words.replace(" ", "\n").encode() + b"\n"),
        "INST": _GLOBALS.map(lambda words: words.replace(" ", "\n").encode() + b"\n"),
        "BINUNICODE": st.sampled_from(
            [b"storage", b"0", b"cpu", b"state_dict", b"", b"x" * 300]
        ).map(lambda text: len(text).to_bytes(4, "little") + text),
        "LONG1": _NUMBERS.map(lambda n: b"\x09" + n.to_bytes(9, "little")),
        "LONG4": _NUMBERS.map(lambda n: n.to_bytes(9, "little")[:4] + b"\1"),
        "BINUNICODE8": _NUMBERS.map(lambda n: n.to_bytes(8, "little") + b"x"),
        "BINBYTES8": _NUMBERS.map(lambda n: n.to_bytes(8, "little") + b"x"),
        "FRAME": _NUMBERS.map(lambda n: n.to_bytes(8, "little")),
        "INT": _NUMBERS.map(lambda n: f"{n}\n".encode()),
        "PERSID": st.just(b"storage\n"),
    }
    for one in ("BININT1", "BINGET", "BINPUT", "EXT1", "PROTO"):
        sized[one] = st.integers(0, 255).map(lambda n: bytes([n]))
    for four in ("BININT", "LONG_BINGET", "LONG_BINPUT"):
        sized[four] = _NUMBERS.map(lambda n: (n % 2**32).to_bytes(4, "little"))
    return sized.get(name, st.just(b"")).map(lambda argument: code + argument)


_PLAIN = (
    "MARK", "POP", "POP_MARK", "DUP", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "EMPTY_TUPLE", "LIST",
    "TUPLE", "DICT", "FROZENSET", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM",
    "SETITEMS", "ADDITEMS", "MEMOIZE", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ",
    "BINPERSID", "BUILD", "NONE", "NEWTRUE", "STOP",
)  # fmt: skip
_WORDED = (
    "GLOBAL", "INST", "BINUNICODE", "LONG1", "LONG4", "BINUNICODE8", "BINBYTES8", "FRAME", "INT",
    "PERSID", "BININT1", "BINGET", "BINPUT", "EXT1", "PROTO", "BININT", "LONG_BINGET", "LONG_BINPUT",
)  # fmt: skip
PICKLES = st.lists(st.sampled_from([*_PLAIN, *_WORDED]).flatmap(_opcode), max_size=60).map(
    lambda codes: b"\x80\x02" + b"".join(codes) + b"."
)


@fuzzed
@given(PICKLES)
def test_programs_in_ckpts(home: Path, program: bytes) -> None:
    with watched(home):
        read_checkpoint(home, zipped({**MEMBERS[0], INDEX: program}))


@fuzzed
@given(damaged(SAFETENSORS))
def test_safetensors(home: Path, content: bytes) -> None:
    with watched(home):
        read_checkpoint(home, content)


PLAN = json.loads(SAFETENSORS[0][8 : 8 + int.from_bytes(SAFETENSORS[0][:8], "little")])
NUMBERS = SAFETENSORS[0][8 + int.from_bytes(SAFETENSORS[0][:8], "little") :]


@fuzzed
@given(damaged_json(PLAN), st.sampled_from([0, 0, 0, 1, -1, 2**40]))
def test_headers_of_safetensors(home: Path, plan: Any, more: int) -> None:
    head = json.dumps(plan).encode()
    length = max(0, len(head) + more).to_bytes(8, "little")
    with watched(home):
        read_checkpoint(home, length + head + NUMBERS)


# --- images -------------------------------------------------------------------------------------

JOB = Job(
    prompt="a cat", negative="x", seed=1, n_samples=2, steps=2, sampler="ddim", scale=7.5, width=8,
    height=8, eta=0.0, strength=0.5,
)  # fmt: skip
RECORD = Record(JOB, 1, "tiny", "12345678", {"a.png": "0" * 16})
GRADIENT = np.arange(12 * 9 * 3, dtype=np.uint8).reshape(12, 9, 3)
TEXTS = {"parameters": RECORD.infotext(), "ldm": RECORD.to_json()}
RECORDS = [
    encode_png(GRADIENT, TEXTS),
    encode_png(GRADIENT, {**TEXTS, "ldm": TEXTS["ldm"] + " " * 99}),
]


def image(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(GRADIENT).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


IMAGES = [
    image("PNG"),
    image("PNG", "RGBA"),
    image("PNG", "P"),
    image("PNG", "I;16"),
    image("JPEG", exif=_exif()),
    image("GIF"),
    image("BMP"),
    image("TIFF"),
    image("TIFF", compression="tiff_lzw"),
    image("WEBP"),
    image("PPM"),
]


READERS: dict[str, Callable[[Path], object]] = {
    "image": read_image,
    "mask": read_mask,
    "depth": read_depth,
    "texts": read_texts,
    "record": read_our_record,
}


@pytest.mark.parametrize("reader", READERS)
@fuzzed
@given(data=st.data())
def test_images(home: Path, reader: str, data: st.DataObject) -> None:
    seeds = RECORDS if reader in ("texts", "record") else IMAGES
    content = data.draw(damaged([*seeds, *IMAGES]))
    with watched(home):
        READERS[reader](placed(home, content))


@fuzzed
@given(damaged_json(json.loads(RECORD.to_json())))
def test_records(home: Path, content: Any) -> None:
    with watched(home):
        read_our_record(placed(home, encode_png(GRADIENT, {"ldm": json.dumps(content)})))


@fuzzed
@given(
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("n_samples", "n_iter", "prompts", "classes", "seed"), ODD_VALUES)
    )
)  # fmt: skip
def test_records_of_odd_numbers(home: Path, odd: dict[str, Any]) -> None:
    content = json.loads(RECORD.to_json())
    content["job"] |= odd
    with watched(home):
        read_our_record(placed(home, encode_png(GRADIENT, {"ldm": json.dumps(content)})))
