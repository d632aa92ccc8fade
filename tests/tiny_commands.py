"""Commands on a tiny model, and what they answer."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.golden_data import GOLDEN
from tests.golden_keys import golden_shapes

ROOT = Path(__file__).parents[1]


TINY = GOLDEN / "e2e" / "sd-v1-tiny"


QUICK = ["--H", "16", "--W", "24", "--steps", "2", "--device", "cpu"]


def place_tiny(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(TINY / "model.ckpt", path)
    tree = yaml.safe_load((TINY / "config.yaml").read_text(encoding="utf-8"))
    tower = json.loads((TINY / "text_config.json").read_text(encoding="utf-8"))
    tree["model"]["params"]["cond_stage_config"]["params"] = {"text_config": tower}
    path.with_suffix(".yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")


def fake_full_size(path: Path, keys: str) -> Path:
    """A file with the header of a published model and nothing behind it but a hole."""
    header, end = {}, 0
    for key, shape in golden_shapes(keys).items():
        size = 2 * int(np.prod(shape))
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)
    return path


def error_of(capfd: pytest.CaptureFixture[str]) -> str:
    captured = capfd.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("ldm: error: ")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[0].removeprefix("ldm: error: ")
