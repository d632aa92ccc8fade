"""The models in the model folders, without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import typer

from ldm.checkpoints.families.choice import choose
from ldm.checkpoints.folders import WHOLE, ModelFile, model_files, searching
from ldm.checkpoints.locate import FITTING
from ldm.checkpoints.weights.header import read_header
from ldm.errors import UsageError

_TASKS = ("txt2img", "img2img", "inpaint", "depth2img", "upscale", "variations", "sample")


def models(folders: Sequence[str], *, as_json: bool) -> int:
    """Print what lies in the model folders; a file that cannot be read is listed with the reason.

    The hash is the short one in the records of images: the whole file is not read.
    """
    with searching(folders):
        rows = [_row(file) for file in model_files()]
    if as_json:
        typer.echo(json.dumps({"models": rows}))
        return 0
    for row in rows:
        what = row["problem"] or f"{row['family'] or row['kind']}, {row['precision']}"
        able = f" ({', '.join(row['tasks'])})" if row["tasks"] else ""
        size = f"{row['size'] / 1e6:,.1f} MB"
        typer.echo(f"{row['name']}  {row['hash'] or '-'}  {size}  {what}{able}")
    if not rows:
        typer.echo("ldm: no models found; see docs/models.md", err=True)
    return 0


def _row(file: ModelFile) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": file.name,
        "path": str(file.path),
        "kind": file.kind or WHOLE,
        "size": 0,
        "hash": None,
        "precision": None,
        "family": None,
        "tasks": [],
        "problem": None,
    }
    try:
        row["size"] = file.path.stat().st_size
        header = read_header(file.path)
        row["hash"] = header.short_hash
        sizes: dict[str, int] = {}
        for entry in header.tensors.values():
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.size
        row["precision"] = max(sizes, key=lambda name: sizes[name])
        if file.kind in ("", WHOLE):
            family = choose(header).family
            row["family"] = family.title
            row["tasks"] = [task for task in _TASKS if family.task in FITTING.get(task, (task,))]
    except OSError as error:
        row["problem"] = error.strerror or type(error).__name__
    except UsageError as error:
        row["problem"] = str(error)
    return row
