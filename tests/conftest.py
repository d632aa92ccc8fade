"""Settings that hold for every test; nothing here imports torch."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from ldm.engine.results import Result
    from ldm.runs.writer import Writer

# Tests run in two processes on two cores, and no test may reach for a network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

# No test writes into the user's cache.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="ldm-test-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# How long an example takes says more about the machine than about the code.
settings.register_profile("ldm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ldm")


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    """The results of the runs of a test, beside their files."""
    from ldm.runs.writer import Writer

    found: list[Result] = []
    write = Writer.write

    def collect(writer: Writer, result: Result, path: Path | None = None) -> Path | None:
        found.append(result)
        return write(writer, result, path)

    monkeypatch.setattr(Writer, "write", collect)
    return found


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test where the weights of a model are read."""
    monkeypatch.setattr(
        "ldm.models.load.load_model", lambda *_: pytest.fail("the weights were read")
    )
