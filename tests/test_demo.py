"""`make demo` makes an image by each command and lays them on a sheet, as often as asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SCRIPT = Path(__file__).parents[1] / "scripts" / "demo.py"
TASKS = ("txt2img", "img2img", "inpaint", "depth2img", "upscale")


def test_the_commands_and_a_sheet(tmp_path: Path) -> None:
    there = tmp_path / "demo"
    there.mkdir()
    (there / "mine.txt").write_text("kept", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, SCRIPT, "--outdir", there],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in there.iterdir()) == ["mine.txt"]
    folder = tmp_path / "demo-2"
    for task in TASKS:
        assert f"$ ldm {task} " in done.stdout
        with Image.open(folder / f"{task}.png") as image:
            assert image.size == (128, 128)
            assert np.asarray(image.convert("RGB")).std() > 10
    assert str(folder / "contact-sheet.png") in done.stdout
    with Image.open(folder / "contact-sheet.png") as sheet:
        assert sheet.size == (136 * len(TASKS), 306)
