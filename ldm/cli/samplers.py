"""The samplers and noise schedules, with the names that other programs give them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import typer

from ldm.jobs.fields import ETA_SAMPLERS, GRID_NAMES, NOISY_SAMPLERS, SAMPLER_ALIASES
from ldm.jobs.sampler_names import GRID_TITLES, SAMPLER_TITLES, Names, own_grid, own_order


def samplers(*, as_json: bool) -> int:
    """Print every sampler and grid with its facts, and the names of other programs."""
    grids = {name: GRID_TITLES.get(name, Names()) for name in GRID_NAMES}
    if as_json:
        listed = {
            "samplers": {name: _facts(name, names) for name, names in SAMPLER_TITLES.items()},
            "grids": {name: vars(names) for name, names in grids.items()},
        }
        typer.echo(json.dumps(listed))
        return 0
    heading = ("sampler", "order", "noise", "grid", "AUTOMATIC1111", "ComfyUI", "diffusers")
    typer.echo(_table([heading, *map(_row, SAMPLER_TITLES)]))
    typer.echo("\norder: of convergence, measured; - for those of distilled or adaptive steps")
    typer.echo("AUTOMATIC1111, ComfyUI: the sampler, and the schedule that is our usual grid\n")
    named = [(name, *map(_joined, (n.webui, n.comfy, n.diffusers))) for name, n in grids.items()]
    typer.echo(_table([("grid", "AUTOMATIC1111", "ComfyUI", "diffusers"), *named]))
    return 0


def _facts(name: str, names: Names) -> dict[str, Any]:
    """What there is to know about a sampler; `pairs` are the names of it and its usual grid."""
    grid = GRID_TITLES.get(own_grid(name), Names())
    pairs = {"webui": (names.webui, grid.webui), "comfy": (names.comfy, grid.comfy)}
    return vars(names) | {
        "aliases": SAMPLER_ALIASES[name],
        "order": own_order(name),
        "noise": name in (*ETA_SAMPLERS, *NOISY_SAMPLERS),
        "grid": own_grid(name),
        "pairs": {who: [next(iter(part), None) for part in pair] for who, pair in pairs.items()},
    }


def _row(name: str) -> tuple[str, ...]:
    names = SAMPLER_TITLES[name]
    facts = _facts(name, names)
    pairs = [
        " + ".join(part for part in (_joined(known), facts["pairs"][who][1]) if part)
        if known
        else "-"
        for who, known in (("webui", names.webui), ("comfy", names.comfy))
    ]
    noise = "yes" if facts["noise"] else "no"
    order = str(facts["order"] or "-")
    return (name, order, noise, facts["grid"], *pairs, _joined(names.diffusers))


def _joined(names: Sequence[str]) -> str:
    return ", ".join(names) or "-"


def _table(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
