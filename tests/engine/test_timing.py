"""Where time goes, and what is counted instead of it: calls, modules imported, bytes read."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm.checkpoints.config import resource
from ldm.checkpoints.weights.files import save_safetensors
from ldm.cli.app import run
from ldm.engine.timing import PHASES, phase, timed
from ldm.models.load import load_model
from tests.tiny_models import make, v1_tree, write
from tests.tiny_models import state as state_of
from tests.unneeded_imports import unneeded


def test_a_phase_inside_another_counts_for_itself() -> None:
    with timed() as timings:
        with phase("load"):
            time.sleep(0.02)
            with phase("imports"):
                time.sleep(0.08)
        with phase("load"):
            pass
    assert timings.entries == {"load": 2, "imports": 1}
    assert timings.seconds["imports"] >= 0.08
    assert 0.02 <= timings.seconds["load"] < 0.08
    told = timings.summary()
    assert re.fullmatch(
        r"time: imports \S+ s, load \S+ s \(2 times\), other \S+ s; \S+ s in all", told
    ), told


def test_outside_nothing_is_noted() -> None:
    with phase("load"):
        pass
    with timed() as timings:
        pass
    assert not timings.seconds
    with pytest.raises(ZeroDivisionError), timed() as timings, phase("save"):
        _ = 1 // 0
    assert timings.entries == {"save": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write(v1_tree(), folder / "tiny.yaml")
    path = folder / "tiny.safetensors"
    save_safetensors({key: t.contiguous() for key, t in state_of(make(v1_tree())).items()}, path)
    return path


def draw(model: Path, folder: Path, *more: str) -> int:
    words = ["txt2img", "--model", str(model), "--prompt", "a", "--steps", "3", "--seed", "1"]
    return run(
        [*words, "--outdir", str(folder), "--W", "64", "--H", "64", "--device", "cpu", *more]
    )


def test_the_command_tells_its_phases(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draw(tiny, tmp_path, "--timings", "--n_samples", "1") == 0
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("ldm: time: ")
    assert all(f" {name} " in line for name in PHASES if name != "imports"), line


def test_parts_are_called_no_more_often_than_needed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()
    plain = nn.Module.__call__

    def counted(module: nn.Module, *args: object, **named: object) -> object:
        calls[type(module).__name__] += 1
        return plain(module, *args, **named)

    monkeypatch.setattr(nn.Module, "__call__", counted)
    assert draw(tiny, tmp_path, "--n_samples", "1", "--n_iter", "1") == 0
    assert calls["UNetModel"] == 3  # with guidance, too, once a step
    assert calls["_Embeddings"] == 2  # the prompt and the empty one
    assert calls["Decoder"] == 1
    assert calls["Encoder"] == 0


def test_weights_are_not_read_but_mapped() -> None:
    counters = Path("/proc/self/io")
    if not counters.exists():
        pytest.skip("the kernel does not count what is read")

    def read() -> int:
        return int(counters.read_text().split()[1])

    path = resource("models") / "emoji-128.safetensors"
    load_model(path)  # modules and YAMLs are read
    before = read()
    load_model(path, dtype=torch.float32, channels_last=True)
    assert read() - before < path.stat().st_size / 10


def test_an_image_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    program = """
import sys
import ldm.workers.pool
plain = ldm.workers.pool.read_ahead
def noted(path):
    print("torch is there", "torch" in sys.modules)
    return plain(path)
ldm.workers.pool.read_ahead = noted
from ldm.cli.app import run
code = run(sys.argv[1:])
print(*sys.modules)
sys.exit(code)
"""
    words = ["txt2img", "--prompt", "a red apple", "--steps", "1", "--n_samples", "1"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words, "--timings", "--outdir", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert unneeded(set(done.stdout.splitlines()[-1].split())) == []
    assert done.stdout.splitlines()[0] == "torch is there False", "the file is read meanwhile"
    assert "ldm: time: imports " in done.stderr
