from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from ldm.errors import JobError
from ldm.runs import files
from ldm.runs.files import Numbered, check_folder, check_output, write_file


def write_many(folder: str, mark: bytes) -> None:
    names = Numbered(Path(folder), "", 5)
    for _ in range(40):
        names.write(mark * 1000)


def test_numbers_go_on_after_the_highest(tmp_path: Path) -> None:
    (tmp_path / "00007.png").write_bytes(b"old")
    (tmp_path / "notes.txt").write_bytes(b"")
    (tmp_path / "99999x.png").write_bytes(b"")
    names = Numbered(tmp_path, "", 5)
    assert names.write(b"new").name == "00008.png"
    (tmp_path / "00009.png").write_bytes(b"another process")
    assert names.write(b"newer").name == "00010.png"
    assert (tmp_path / "00009.png").read_bytes() == b"another process"
    assert Numbered(tmp_path, "grid-", 4).write(b"g").name == "grid-0000.png"
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_two_processes_never_share_a_name(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=write_many, args=(str(tmp_path), m)) for m in (b"a", b"b")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    contents = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"{i:05}.png" for i in range(80)]
    assert sorted(contents) == [b"a" * 1000] * 40 + [b"b" * 1000] * 40


def test_without_hard_links_nothing_is_replaced_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", refuse)
    first = Numbered(tmp_path, "", 5).write(b"1")
    second = Numbered(tmp_path, "", 5)
    second._next = 0
    assert (first.name, second.write(b"2").name) == ("00000.png", "00001.png")
    assert first.read_bytes() == b"1"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_named_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_file(path, b"1", overwrite=False)
    with pytest.raises(JobError, match="add --overwrite"):
        write_file(path, b"2", overwrite=False)
    assert path.read_bytes() == b"1"
    write_file(path, b"3", overwrite=True)
    assert path.read_bytes() == b"3"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_found_early(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(JobError, match=r"--outdir .*cannot be written"):
        check_folder(tmp_path / "file" / "samples", "--outdir")
    check_folder(tmp_path / "new" / "samples", "--outdir")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "images", "message"),
    [
        ("a.png", 6, "the job makes 6"),
        ("a.gif", 1, "must end in .png"),
        ("there.png", 1, "the file exists"),
        ("sub", 1, "is a folder"),
        ("there.png/a.png", 1, "cannot be written"),
    ],
)
def test_a_bad_output_name_is_found_early(
    tmp_path: Path, name: str, images: int, message: str
) -> None:
    (tmp_path / "there.png").write_bytes(b"")
    (tmp_path / "sub").mkdir()
    with pytest.raises(JobError, match=message):
        check_output(str(tmp_path / name), images, overwrite=False)
