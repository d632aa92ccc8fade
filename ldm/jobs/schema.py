"""The JSON schema of a job, derived from the fields of Job."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

from ldm.jobs.job import Job
from ldm.jobs.options import options_of

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def job_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of one job in a JSON file for `--from-file`."""
    hints = get_type_hints(Job)
    defaults = {entry.name: entry.default for entry in dataclasses.fields(Job)}
    properties: dict[str, Any] = {}
    for name, detail in options_of(Job).items():
        if not detail.flags and name != "task":
            continue
        entry = _kind(hints[name])
        if detail.choices:
            entry["enum"] = [*detail.choices, *([None] if defaults[name] is None else [])]
        if detail.help:
            entry["description"] = detail.help
        if defaults[name] not in (None, ()):
            entry["default"] = defaults[name]
        if detail.tasks:
            entry["x-tasks"] = list(detail.tasks)
        properties[name] = entry
    properties["output"] = {"type": "string", "description": "Name of its file, in --outdir."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A job of ldm",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _kind(hint: Any) -> dict[str, Any]:
    if hint == tuple[str, ...]:
        return {"type": "array", "items": {"type": "string"}}
    if isinstance(hint, type):
        return {"type": _TYPES[hint]}
    kinds = [_TYPES.get(part, "null") for part in hint.__args__]
    return {"type": kinds}
