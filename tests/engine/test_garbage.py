from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from ldm.engine.garbage import uncollected


@pytest.mark.parametrize("enabled", [True, False])
def test_collecting_goes_on_as_it_was(enabled: bool) -> None:
    frozen = gc.get_freeze_count()
    try:
        if not enabled:
            gc.disable()
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
    assert gc.get_freeze_count() == frozen, "not the first import: what there is may go yet"


_PROGRAM = """
import gc
collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
from ldm.workers.pool import load_engine
from ldm.engine.plan import make_plan
plan = make_plan({"task": "txt2img", "prompt": "an apple"})
del collections[:]
load_engine(plan, plan.given, lambda event: None)
print(len(collections), gc.get_freeze_count(), gc.isenabled())
"""


def test_loading_collects_next_to_nothing() -> None:
    command = [sys.executable, "-c", _PROGRAM]
    words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    collections, frozen, enabled = words
    assert int(collections) < 100  # 856 without
    assert int(frozen) > 50_000
    assert enabled == "True"
