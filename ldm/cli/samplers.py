"""The samplers and noise schedules, with the names that other programs give them."""

from __future__ import annotations

import json
from collections.abc import Mapping

import typer

from ldm.jobs.fields import ETA_SAMPLERS, GRID_NAMES, SAMPLER_ALIASES
from ldm.jobs.sampler_names import GRID_TITLES, SAMPLER_TITLES, Names


def samplers(*, as_json: bool) -> int:
    """Print every sampler and grid: ours, then AUTOMATIC1111's, ComfyUI's and diffusers' names."""
    grids = {name: GRID_TITLES.get(name, Names()) for name in GRID_NAMES}
    if as_json:
        listed = {
            "samplers": {
                name: vars(names)
                | {"aliases": SAMPLER_ALIASES[name], "noise": name in (*ETA_SAMPLERS, "lcm")}
                for name, names in SAMPLER_TITLES.items()
            },
            "grids": {name: vars(names) for name, names in grids.items()},
        }
        typer.echo(json.dumps(listed))
        return 0
    typer.echo(_table("sampler", SAMPLER_TITLES))
    typer.echo()
    typer.echo(_table("grid", grids))
    return 0


def _table(heading: str, rows: Mapping[str, Names]) -> str:
    titles = (heading, "AUTOMATIC1111", "ComfyUI", "diffusers")
    lines: list[tuple[str, ...]] = [titles]
    for name, names in rows.items():
        others = (names.webui, names.comfy, names.diffusers)
        lines.append((name, *(", ".join(known) or "-" for known in others)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
