"""`--compile`: what is asked of torch's compiler, what is refused, and what stays on the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.checkpoints.config import resource
from ldm.cli.app import run
from ldm.engine.device import choose
from ldm.engine.engine import Engine
from ldm.errors import JobError
from ldm.jobs.job import Job
from ldm.jobs.outputs import split
from ldm.jobs.tuning import Tuning, check_compiler
from ldm.nn.packing import PackedConv2d
from ldm.workers.pool import load_as
from tests.comparing_runs import Count
from tests.tiny_commands import QUICK, ROOT, error_of, place_tiny

BUNDLED = resource("models") / "emoji-128.safetensors"
WORDS = ["txt2img", "--prompt", "x", "--model", "tiny", "--seed", "1", *QUICK]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny model."""
    place_tiny(tmp_path / "models" / "tiny.ckpt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def can_compile() -> bool:
    try:
        check_compiler("cpu")
    except JobError:
        return False
    return True


@pytest.mark.skipif(not can_compile(), reason="no C++ compiler, or no headers of Python")
def test_a_compiled_image_is_the_image_and_the_work_is_kept(home: Path) -> None:
    def files(*words: str) -> set[Path]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(home / "kept")}
        environment.pop("TORCHINDUCTOR_CACHE_DIR", None)  # torch sets it where it looked for it
        command = [sys.executable, "-m", "ldm", *WORDS, *words]
        subprocess.run(command, check=True, env=environment, capture_output=True)
        return {path for path in (home / "kept").rglob("*") if path.is_file()}

    assert not files("-o", "plain.png")
    made = files("-o", "compiled.png", "--compile")
    assert all(path.is_relative_to(home / "kept/ldm/compiled") for path in made)
    assert {".cpp", ".so"} <= {path.suffix for path in made}
    assert files("-o", "again.png", "--compile") == made  # nothing is compiled twice
    plain, ours, again = (
        np.asarray(Image.open(f"{name}.png")).astype(int) for name in ("plain", "compiled", "again")
    )
    assert np.abs(plain - ours).max() <= 1
    assert np.array_equal(ours, again)


def test_the_network_alone_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[type] = []
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "somewhere")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self)))
    monkeypatch.setattr("ldm.engine.device.check_compiler", lambda device: None)
    policy = choose("cpu", "auto", "auto", tuning=Tuning(compile=True))
    model = load_as(policy, BUNDLED).model
    assert compiled == [type(model.network)]
    assert not any(isinstance(part, PackedConv2d) for part in model.network.modules())
    parts = model.first_stage_model.modules()  # which are as ever
    assert any(getattr(part, "in_phases", False) for part in parts) == policy.packed
    calls = Count(model.network)
    job = Job(prompt="x", width=32, height=32, steps=2, sampler="ddim", seed=1, scale=2.0, n_iter=4,
              n_samples=1)  # fmt: skip
    assert len(list(Engine(model, policy).run_all([job]))) == 4
    assert set(calls.rows) == {2}  # another number would be compiled again
    assert len(list(Engine(model, policy).run_all([job], None, 4))) == 4
    assert calls.rows[-1] == 8


@pytest.mark.parametrize("words", [["--lowvram"], ["--offload", "layers"], ["--offload", "parts"]])
def test_a_network_that_moves_is_not_compiled(
    home: Path, capfd: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert run([*WORDS, "--compile", *words]) == 2
    assert "--compile needs the network to stay on the device" in error_of(capfd)


def test_eight_bits_are_not_compiled(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*WORDS, "--compile", "--precision", "int8"]) == 2
    assert "--compile: not with --precision int8" in error_of(capfd)


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.jobs.tuning.sys", SimpleNamespace(version_info=(3, 13, 1)))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sysconfig.get_path", lambda name: "nowhere")
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(JobError, match=r"install g\+\+, set CXX"):
        check_compiler("cpu")
    monkeypatch.setenv("CXX", sys.executable)  # a program that is there
    with pytest.raises(JobError, match="needs Python's headers"):
        check_compiler("cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(JobError, match="needs Triton on a GPU"):
        check_compiler("cuda")


def test_what_is_asked_of_the_engine() -> None:
    assert split({})[0].tuning == Tuning("auto", compile=False)
    assert split({"compile": True, "offload": "none"})[0].tuning == Tuning("none", compile=True)


def test_python_3_13_0_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.jobs.tuning.sys", SimpleNamespace(version_info=(3, 13, 0)))
    with pytest.raises(JobError, match=r"use 3\.13\.1 or newer"):
        check_compiler("cpu")
