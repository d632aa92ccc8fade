"""A fixed set of files made to hurt: each is refused in a moment, in few words, within the limits.

What the random tests found, and what is known of old: bombs, liars, loops and ways out.
"""

# ruff: noqa: E501 (tables of hostile values)
from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm.checkpoints.config import parse_config
from ldm.errors import UsageError
from ldm.images.reading import read_image
from ldm.images.texts import read_texts
from ldm.jobs.expansion import expand
from ldm.jobs.files import parse_rows, read_axes
from ldm.jobs.job import Job
from ldm.jobs.templates import parse as parse_name
from ldm.runs.manifest import NAME, Manifest
from ldm.text.prompt import parse as parse_prompt
from tests.fuzz.hostile_files import INDEX, MEMBERS, read_checkpoint, read_our_record, zipped
from tests.fuzz.watch import watched
from tests.odd_images import PNG_START, png_chunk, png_header

MEBIBYTE = 2**20


def safetensors(plan: dict[str, object] | str, numbers: bytes = b"\0" * 64) -> bytes:
    head = (plan if isinstance(plan, str) else json.dumps(plan)).encode()
    return len(head).to_bytes(8, "little") + head + numbers


def tensor(first: int, last: int, *shape: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


def bomb(name: str, size: int, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A small archive with a member of so many zeros."""
    return zipped(
        {INDEX: MEMBERS[0][INDEX], name: bytes(size)} if name != INDEX else {INDEX: bytes(size)},
        method,
    )


def program(code: bytes) -> bytes:
    return zipped({**MEMBERS[0], INDEX: b"\x80\x02" + code + b"."})


def lying(content: bytes, size: int) -> bytes:
    """An archive whose directory tells a member's size wrongly."""
    at = content.index(b"PK\x01\x02")
    return content[: at + 24] + struct.pack("<I", size) + content[at + 28 :]


# A dict of 20,000 keys, then copied 50,000 times.
_COPIES = (
    b"}q\0("
    + b"".join(b"J" + number.to_bytes(4, "little") + b"N" for number in range(20_000))
    + b"u0("
    + b"ccollections\nOrderedDict\nh\0\x85R" * 50_000
    + b"l"
)
CHECKPOINTS: dict[str, Callable[[], bytes]] = {
    "index of zeros, packed small": lambda: bomb(INDEX, 100 * MEBIBYTE),
    "index packed by bzip2": lambda: bomb(INDEX, MEBIBYTE, zipfile.ZIP_BZIP2),
    "byte order of zeros": lambda: bomb(INDEX.replace("data.pkl", "byteorder"), 100 * MEBIBYTE),
    "index that tells its size wrongly": lambda: lying(bomb(INDEX, MEBIBYTE), 5),
    "stack of a million lists": lambda: program(b"]" * 1_500_000),
    "copies of a dict": lambda: program(_COPIES),
    "call of a function": lambda: program(b"cos\nsystem\nX\x04\0\0\0true\x85R"),
    "shape of a hundred axes": lambda: safetensors({"w": tensor(0, 4, *[1] * 100)}),
    "shape of enormous numbers": lambda: safetensors({"w": tensor(0, 4, 10**400, 10**400)}),
    "numbers beyond the file": lambda: safetensors({"w": tensor(0, 2**40, 2**38)}),
    "overlapping tensors": lambda: safetensors({"a": tensor(0, 16, 4), "b": tensor(8, 24, 4)}),
    "one place for many tensors": lambda: safetensors(
        {f"w{n}": tensor(0, 64, 16) for n in range(1000)}
    ),
    "header longer than the file": lambda: (2**23).to_bytes(8, "little") + b"{}",
    "header of enormous length": lambda: (2**63).to_bytes(8, "little") + b"{}",
    "deep JSON": lambda: safetensors('{"a":' * 100_000),
    "key of line ends and escapes": lambda: safetensors({"\x1b[2J\n" * 2000: [1]}),
    "half a zip": lambda: zipped(MEMBERS[0])[:-40],
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(name: str, tmp_path: Path) -> None:
    content = CHECKPOINTS[name]()
    with watched(tmp_path), pytest.raises(UsageError) as caught:
        read_checkpoint(tmp_path, content)
    assert not set(str(caught.value)) & set("\n\x1b")


def png(*chunks: bytes, width: int = 8, height: int = 8) -> bytes:
    rows = b"\0" * (1 + 3 * width) * height if width < 1000 else b"\0" * 3000
    data = png_chunk(b"IDAT", zlib.compress(rows))
    header = png_header(width, height, 8, 2)
    return PNG_START + header + b"".join(chunks) + data + png_chunk(b"IEND", b"")


def _told(key: bytes, text: str) -> bytes:
    return png_chunk(b"tEXt", key + b"\0" + text.encode("latin-1"))


RECORD = {
    "ldm": "0.1.0",
    "job": {"prompt": "x", "seed": 1, "steps": 1, "width": 8, "height": 8, "n_samples": 1},
    "row": 0,
    "model": {"name": "m", "hash": "0"},
}
IMAGES: dict[str, tuple[Callable[[], bytes], Callable[[Path], object]]] = {
    "image of 10^12 pixels": (lambda: png(width=10**6, height=10**6), read_image),
    "texts in such an image": (lambda: png(width=10**6, height=10**6), read_texts),
    "text of zeros, packed small": (
        lambda: png(png_chunk(b"zTXt", b"ldm\0\0" + zlib.compress(bytes(200 * MEBIBYTE)))),
        read_our_record,
    ),
    "record nested deeply": (lambda: png(_told(b"ldm", "[" * 100_000)), read_our_record),
    "record of many rows": (
        lambda: png(_told(b"ldm", json.dumps(RECORD).replace('s": 1}', 's": 1000000000000}'))),
        read_our_record,
    ),
    "record that is none": (lambda: png(_told(b"ldm", '{"job": 1}')), read_our_record),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str, tmp_path: Path) -> None:
    make, read = IMAGES[name]
    path = tmp_path / "x.png"
    path.write_bytes(make())
    with watched(tmp_path), pytest.raises(UsageError):
        read(path)


def test_the_record_would_be_read_if_it_were_sound(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(_told(b"ldm", json.dumps(RECORD))))
    read_our_record(tmp_path / "x.png")


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
ECHOES = "a0: xxxxxxxx\n" + "".join(f"a{n}: ${{a{n - 1}}}${{a{n - 1}}}\n" for n in range(1, 30))
TEXTS: dict[str, Callable[[], object]] = {
    "aliases that double": lambda: parse_config(LAUGHS, "x"),
    "references that double": lambda: parse_config(ECHOES, "x"),
    "alias of itself": lambda: parse_config("a: &a [*a]\n", "x"),
    "Python in a YAML": lambda: parse_config("a: !!python/object/apply:os.system [true]\n", "x"),
    "long YAML": lambda: parse_config("a: 1\n" * 300_000, "x"),
    "deep YAML": lambda: parse_config("a: " + "[" * 50_000, "x"),
    "span of a choice": lambda: expand("{1-999999999999$$a|b}", 0),
    "long number in a choice": lambda: expand("{" + "9" * 5000 + "$$a|b}", 0),
    "choices in choices": lambda: expand("{" * 5000, 0),
    "every one of many": lambda: expand("{e$$a|b|c|d|e|f|g|h|i|j}" * 40, 0),
    "wildcard out of its folder": lambda: expand("__x/../../secret__", 0),
    "wildcards that double": lambda: expand("__w0__", 0),
    "wildcards of nothing that double": lambda: expand("__v0__", 0),
    "many brackets": lambda: parse_prompt("(a" * 30_000),
    "long prompt": lambda: Job(prompt="x" * 10**6).validate(),
    "wide name": lambda: parse_name("{seed:0999999999d}.png"),
    "number as a slash": lambda: parse_name("{seed:c}.png"),
    "filled up with slashes": lambda: parse_name("{seed:/>9}.png"),
    "number without end": lambda: parse_rows(f'[{{"scale": 1{"0" * 400}}}]', "x", {}, "json"),
    "list nested deeply": lambda: parse_rows(f'weights\n"{"[" * 9999}"', "x", {"task": "variations"}, "csv"),
    "file out of the folder": lambda: parse_rows("a --f ../../x", "x", {}, "txt"),
    "file from the root": lambda: parse_rows('["a", {"output": "/etc/x"}]', "x", {}, "json"),
    "file on another drive": lambda: parse_rows("a --f C:x", "x", {}, "txt"),
    "long axis": lambda: read_axes(["seed=1-99999999999"], "txt2img"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text("secret\n")
    (tmp_path / "wildcards").mkdir()
    for n in range(35):
        (tmp_path / f"wildcards/w{n}.txt").write_text(f"__w{n + 1}__ __w{n + 1}__\n")
        (tmp_path / f"wildcards/v{n}.txt").write_text(f"__v{n + 1}__{{|}}__v{n + 1}__\n")
    (tmp_path / "wildcards/w35.txt").write_text("x\n")
    (tmp_path / "wildcards/v35.txt").write_text("{|}\n")
    with watched(tmp_path), pytest.raises(UsageError):
        TEXTS[name]()


def test_a_manifest_names_nothing_outside_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(b"")
    names = ["../secret.png", str(tmp_path / "secret.png"), "x/../../secret.png"]
    lines = [json.dumps({"fingerprint": "f", "path": name}) for name in names]
    (folder / NAME).write_text("\n".join(lines) + "\n")
    assert Manifest.open(folder).done("f") is None


def test_the_watch_sees_what_it_is_for(tmp_path: Path) -> None:
    def wrongs() -> dict[str, Callable[[], object]]:
        return {
            "compile": lambda: compile("1", "x", "eval"),
            "open": lambda: (tmp_path.parent / "outside").write_bytes(b""),
            "took": lambda: bytes(range(256)) * (2 * MEBIBYTE),
            "socket": lambda: __import__("socket").socket().close(),
        }

    for name, wrong in wrongs().items():
        with pytest.raises(AssertionError, match=name), watched(tmp_path / "inside"):
            wrong()
