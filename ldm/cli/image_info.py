"""What `ldm info` shows of an image: how it was made, in one form for all programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.jobs.fields import SAMPLER_NAMES
from ldm.jobs.metadata import Record, parse_infotext
from ldm.jobs.sampler_names import grid_of, sampler_fields
from ldm.runs.from_image import Origin, read_origin

# The first rows, and what they are called; other fields follow under their own names.
_ROWS: Mapping[str, str] = {
    "prompt": "prompt",
    "negative": "negative",
    "seed": "seed",
    "steps": "steps",
    "sampler": "sampler",
    "grid": "grid",
    "scale": "scale",
}
_HIDDEN = ("prompts", "width", "height", "model", "skip_draws", "draw_rows", "n_iter")


def show(path: Path, *, as_json: bool, raw: bool) -> str:
    """The settings inside an image as lines or JSON; with `raw`, its texts as they are."""
    origin = read_origin(path)
    if as_json:
        return json.dumps(_content(origin, raw=raw))
    if raw:
        return _raw(path, origin.texts)
    summary = _summary(origin)
    if summary is None:
        keys = ", ".join(origin.texts)
        other = f" (its texts: {keys}; --raw shows them)" if keys else ""
        return f"{path}: contains no information about how it was made{other}"
    rows = [(name, text) for name, text in _rows(summary) if text]
    width = max(len(name) for name, _ in rows) + 2
    indent = "\n" + " " * width
    lines = [f"{name:<{width}}{indent.join(text.splitlines())}" for name, text in rows]
    return "\n".join(lines)


def _content(origin: Origin, *, raw: bool) -> dict[str, Any]:
    texts = origin.texts
    parameters = texts.get("parameters")
    infotext = parameters is not None and not parameters.lstrip().startswith("{")
    content: dict[str, Any] = {
        "parameters": vars(parse_infotext(parameters or "")) if infotext else None,
        "ldm": None if origin.record is None else json.loads(texts["ldm"]),
        "settings": _summary(origin),
    }
    return content | ({"texts": dict(texts)} if raw else {})


def _raw(path: Path, texts: Mapping[str, str]) -> str:
    if not texts:
        return f"{path}: contains no text"
    if len(texts) == 1:
        return next(iter(texts.values()))
    return "\n".join(f"[{key}]\n{text}" for key, text in texts.items())


def _summary(origin: Origin) -> dict[str, Any] | None:
    """Program, model, hash, size and the fields of a job; None where nothing is known."""
    if origin.record is not None:
        return _of_record(origin.record)
    settings = origin.settings
    if settings is None:
        return None
    fields = dict(settings.fields)
    if "sampler" in fields:
        fields |= {**sampler_fields(str(fields["sampler"])), **_grid(fields)}
        fields["sampler"] = SAMPLER_NAMES.get(fields["sampler"], fields["sampler"])
    size = f"{fields['width']}x{fields['height']}" if {"width", "height"} <= fields.keys() else ""
    return {
        "program": settings.program,
        **_ordered(fields),
        "size": size,
        "model": settings.model,
        "hash": settings.hash,
        "unused": list(settings.unused),
    }


def _grid(fields: Mapping[str, Any]) -> dict[str, str]:
    return {"grid": grid_of(str(fields["grid"]))} if "grid" in fields else {}


def _of_record(record: Record) -> dict[str, Any]:
    job = record.job
    values = job.image_values(record.row)
    others = {
        name: value
        for name, value in vars(job).items()
        if name not in ("negative", *values) and value != vars(type(job)())[name]
    }
    width, height = job.image_size()
    return {
        "program": f"ldm {record.version}",
        **_ordered({**values, "grid": job.grid, "negative": job.negative, **others}),
        "size": f"{width}x{height}",
        "model": record.model,
        "hash": record.hash,
        "unused": [],
    }


def _ordered(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The usual fields first; those that stand elsewhere or are not set left out."""
    names = [*_ROWS, *(name for name in fields if name not in (*_ROWS, *_HIDDEN))]
    return {name: fields[name] for name in names if fields.get(name) not in (None, "", ())}


def _rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The summary as rows of names and texts."""
    last = ("size", "model", "hash", "unused")
    main = ["program", *(name for name in _ROWS if name in summary), "size", "model", "hash"]
    rest = [name for name in summary if name not in (*main, *last)]
    rows = [(_ROWS.get(name, name), _text(summary[name])) for name in main]
    rows += [(name.replace("_", " "), _text(summary[name])) for name in rest]
    return [*rows, ("not honoured", "\n".join(summary["unused"]))]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
