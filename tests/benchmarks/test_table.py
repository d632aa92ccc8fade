from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import sdcpp
from benchmarks.__main__ import PARTS, main
from benchmarks.limits import FLOPS
from benchmarks.measure import run_once
from benchmarks.processes import PROCESSES
from benchmarks.table import entry, markdown, ratio, read, write

RUNS = [{"wall": wall, "cpu": 2 * wall, "peak": 3 << 20} for wall in (4.0, 1.0, 2.0)]
SLOWER = [{"wall": 4.0, "cpu": 4.0, "peak": 5 << 20, "ready": 2 << 20}]
ENTRIES = [
    entry("unet", "ldm", RUNS, share=0.5),
    entry("unet", "diffusers", SLOWER, difference=1e-6),
    entry("text", "diffusers", SLOWER),
]


def test_medians_and_peaks() -> None:
    ours, other, alone = ENTRIES
    assert (ours.wall, ours.cpu, ours.peak) == (2.0, 4.0, 3 << 20)
    assert (other.held, other.times) == (2 << 20, (4.0,))
    assert ratio(ENTRIES, other) == 0.5
    assert ratio(ENTRIES, alone) is None


def test_the_table(tmp_path: Path) -> None:
    about = {"machine": "an abacus"}
    table = write(tmp_path, "x", ENTRIES, about, ["openvino: not installed"]).read_text()
    assert markdown(ENTRIES, about, ["openvino: not installed"]) in table
    assert "- machine: an abacus\n- left out: openvino: not installed\n" in table
    assert "| unet | ldm | 2.00 | 1.00 | 4.00 | 1.00 | 3 | 50% |  |" in table
    assert "| unet | diffusers | 4.00 | 0.50 | 4.00 | 1.00 | 5 |  | 1e-06 |" in table
    assert len(json.loads((tmp_path / "x.json").read_text())["entries"]) == 3
    assert read(tmp_path, "x") == ENTRIES
    assert read(tmp_path, "y") == []
    with Image.open(tmp_path / "x.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 16) or []) > 3


def test_every_row_has_ldm_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.processes.checkpoint", lambda folder, kind: folder / kind)
    for name, programs in PROCESSES.items():
        peers = programs(tmp_path, "sd")
        assert "ldm" in peers, name
        for program in peers.values():
            compile(program.text, name, "exec")
    assert all("ldm" in peers for peers in PARTS.values())
    assert set(FLOPS) <= set(PARTS)


def test_the_other_program_tells_its_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdcpp, "checkpoint", lambda folder, kind: folder / kind)
    program = tmp_path / "sd"
    text = "echo sampling completed, taking 8.25s; echo decode_first_stage completed, taking 3.50s"
    program.write_text(f"#!/bin/sh\n{text}\ntest -z $FAILS\n")
    program.chmod(0o755)
    unet, decode, words = (
        sdcpp.Timed(str(program), row, tmp_path) for row in ("unet", "decode-1024", "text")
    )
    assert unet.ask("run")["wall"] == 8.25
    assert decode.ask("run")["wall"] == 3.5
    assert decode.ask("run")["peak"] > 0
    assert decode.words[decode.words.index("-W") + 1] == "1024"
    with pytest.raises(RuntimeError, match="does not tell: get_learned_condition"):
        words.ask("run")
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(subprocess.CalledProcessError):
        unet.ask("run")


def test_an_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--rows", "unett"])
    assert "unett" in capsys.readouterr().err


def test_a_process_is_measured() -> None:
    cost = run_once("block = bytearray(64 << 20)\nblock[::4096] = block[::4096]")
    assert 64 << 20 < cost.peak < 256 << 20
    assert cost.cpu > 0
    with pytest.raises(subprocess.CalledProcessError):
        run_once("import sys; sys.exit(3)")


def test_a_part_of_a_process_is_measured() -> None:
    """Work before `begin` and after `end` does not count; without them all does."""
    work = "import time; from benchmarks.own import begin, end; time.sleep(0.5)\n{}time.sleep(0.5)"
    whole, start, middle = (
        run_once(work.format(words)).wall
        for words in ("", "end()\n", "begin(); time.sleep(0.1); end()\n")
    )
    assert 0.1 <= middle < 0.5 <= start < 1 <= whole


def test_a_bench_needs_no_peers_to_tell_its_rows() -> None:
    program = "import sys, benchmarks.__main__; print({'diffusers', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
