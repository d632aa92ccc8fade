"""Lines on standard input: commands, prompts and jobs, with one model for all of them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

import ldm.workers.pool
from ldm.cli.app import run
from ldm.cli.shell import read_line
from ldm.errors import LdmError
from ldm.images.texts import read_record
from ldm.workers.process import Process
from tests.tiny_runs import QUICK, SAMPLES, jobs_of
from tests.tiny_runs import home as home

COMMANDS = ["txt2img", "img2img", "info", "rerun"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("# no", []),
        ('txt2img --prompt "a b" -q', [["txt2img", "-m", "x", "--prompt", "a b", "-q"]]),
        ("info a.png", [["info", "a.png"]]),
        ("--prompt a -o b.png", [["txt2img", "-m", "x", "--prompt", "a", "-o", "b.png"]]),
        ("a cat's hat --steps 2", [["txt2img", "-m", "x", "--prompt=a cat's hat", "--steps", "2"]]),
        ("a well-known dog", [["txt2img", "-m", "x", "--prompt=a well-known dog"]]),
        ('a "b" -o c.png', [["txt2img", "-m", "x", '--prompt=a "b"', "-o", "c.png"]]),
        (
            '{"prompt": "--x", "seed": 7, "scale": 2.5, "fixed_code": true, "output": "a"}',
            [["txt2img", "-m", "x", "--prompt=--x", "--seed=7", "--scale=2.5", "--fixed_code",
              "--output=a.png"]],
        ),
        (
            '{"task": "variations", "images": ["a.png", "b.png"], "no_paste": null}',
            [["variations", "-m", "x", "--image=a.png", "--image=b.png"]],
        ),
    ],
)  # fmt: skip
def test_what_a_line_stands_for(line: str, words: list[list[str]]) -> None:
    assert read_line(line, 1, ["-m", "x"], COMMANDS) == words


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("txt2mg --prompt x", "no such command: txt2mg; did you mean txt2img?"),
        ('--prompt "x', "No closing quotation"),
        ('{"prompt": "x", "stps": 2}', "line 3, column 25: unknown field 'stps'; did you mean"),
        ('{"prompt": ', "line 3"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_line(line: str, message: str) -> None:
    with pytest.raises(LdmError) as caught:
        read_line(line, 3, [], COMMANDS)
    assert message in str(caught.value)


def type_in(monkeypatch: pytest.MonkeyPatch, text: str, *more: str) -> int:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    return run(["shell", *QUICK, "--skip_grid", *more])


def test_the_model_is_loaded_once_and_a_bad_line_is_passed_over(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = ldm.workers.pool.load_engine

    def counted(plan, *rest, **more):  # type: ignore[no-untyped-def]
        loads.append(plan.header.path.name)
        return load(plan, *rest, **more)

    monkeypatch.setattr(ldm.workers.pool, "load_engine", counted)
    lines = "a cat --seed 1\n\n--prompt b --steps many\n" + '{"prompt": "c", "seed": 3}\nexit\nno\n'
    assert type_in(monkeypatch, lines) == 3
    assert jobs_of(home / SAMPLES) == [("a cat", 1, 1), ("c", 3, 1)]
    out, err = capfd.readouterr()
    assert out.splitlines() == [f"{SAMPLES}/00000.png", f"{SAMPLES}/00001.png"]
    assert "--steps must be a whole number, not 'many'" in err
    assert "seed 1" in err
    assert "seed 3" in err
    assert loads == ["tiny.ckpt"]
    # The same as alone.
    alone = ["txt2img", *QUICK, "--prompt", "c", "--seed", "3", "-o", "alone.png"]
    assert run(alone) == 0
    assert (home / "alone.png").read_bytes() == (home / SAMPLES / "00001.png").read_bytes()
    assert loads == ["tiny.ckpt"] * 2  # nothing is kept when the shell has ended


def test_another_model_and_other_commands(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "models/other.ckpt").write_bytes((home / "models/tiny.ckpt").read_bytes())
    (home / "models/other.yaml").write_bytes((home / "models/tiny.yaml").read_bytes())
    lines = "a --seed 1\na --seed 1 -m other -o b.png\nrerun b.png -o c.png\ninfo b.png\n"
    assert type_in(monkeypatch, lines) == 0
    assert read_record(home / "b.png").model == "other"
    assert (home / "c.png").read_bytes() == (home / "b.png").read_bytes()
    assert "seed        1\n" in capfd.readouterr().out


def test_nothing_is_fine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert type_in(monkeypatch, "") == 0
    assert run(["shell", "--help"]) == 0


def test_workers_stay_for_the_next_line(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hired: list[int] = []
    ended: list[Process] = []

    class Noted(Process):
        def __init__(self, index: int) -> None:
            super().__init__(index)
            hired.append(index)

        def stop(self) -> None:
            ended.append(self)
            super().stop()

    monkeypatch.setattr("ldm.workers.process.Process", Noted)
    lines = ["a --seed 1 --n_iter 2", "b --seed 2", "c --seed 3 --workers 1", "d --workers 2"]
    assert type_in(monkeypatch, "\n".join(lines[:2]), "--workers", "2") == 0
    assert (hired, len(ended)) == ([0, 1], 2)
    said = capfd.readouterr().err
    assert said.count(" of ddim") == 2, "each line says what it draws"
    assert len(list((home / SAMPLES).glob("*.png"))) == 3
    assert type_in(monkeypatch, "\n".join(lines[1:]), "--workers", "2") == 0
    assert (hired, len(ended)) == ([0, 1] * 3, 6), "a line without them ends them"
