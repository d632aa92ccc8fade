"""Job files: prompts or jobs as lines, a table or JSON; fields are typed as in a job's record.

    txt    a prompt per line; `#` lines and blank lines are skipped; flags may follow the prompt
           (`a cat --n blurry --s 20`, as in kohya's scripts) or name it (`--prompt "a cat"
           --steps 20`, as in the web UI)
    csv    a header with the names of fields or flags, then a job per line; tsv the same with tabs
    json   a list of objects, or an object with the list as "jobs" and shared fields as "defaults"
    jsonl  an object per line

Empty cells and null count as not given. Every error names file, line and column.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from ldm.errors import JobError
from ldm.jobs.cells import Cell, Entry, Fault, read_entries, sniff
from ldm.jobs.expansion import LIMIT
from ldm.jobs.fields import FILE_FORMATS, GRID_NAMES, SAMPLER_NAMES, TASK_NAMES
from ldm.jobs.job import Job, from_record
from ldm.jobs.options import nearest, options_of
from ldm.jobs.sampler_names import grid_of, sampler_fields, unknown_grid, unknown_sampler
from ldm.jobs.templates import is_inside

_SUFFIXES = {f".{name}": name for name in FILE_FORMATS} | {".ndjson": "jsonl", ".tab": "tsv"}
# Other programs' names for our fields, beside the flags: the web UI, kohya's letters, diffusers.
ALIASES: Mapping[str, str] = {
    "n": "negative",
    "w": "width",
    "h": "height",
    "d": "seed",
    "s": "steps",
    "l": "scale",
    "t": "strength",
    "f": "output",
    "output": "output",
    "cfg_scale": "scale",
    "guidance_scale": "scale",
    "denoising_strength": "strength",
    "num_inference_steps": "steps",
    "sampler_name": "sampler",
    "scheduler": "grid",
    "schedule_type": "grid",
    "batch_size": "n_samples",
    "hr_scale": "hires",
    "hr_second_pass_steps": "hires_steps",
    "subseed": "variation_seed",
    "subseed_strength": "variation_strength",
    "sd_model": "model",
    "init_image": "init_img",
    "mask_image": "mask",
}
# Text fields whose value is often just a number.
_TEXT_OF_A_NUMBER = ("hires",)
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Row:
    """The fields of one job, and their position ("jobs.csv, line 3").

    Besides the fields of Job there may be `output`, the name of its file.
    """

    fields: dict[str, Any]
    place: str


def read_jobs(
    name: str, defaults: Mapping[str, Any], format: str | None = None
) -> list[dict[str, Any]]:
    """Read the fields of every job in a file, on top of `defaults`; `-` is standard input.

    Without `format`, the file's extension decides, else its content. Raises JobError.
    """
    return [row.fields for row in read_rows(name, defaults, format)]


def read_rows(
    name: str,
    defaults: Mapping[str, Any],
    format: str | None = None,
    on_error: Callable[[JobError], None] | None = None,
) -> list[Row]:
    """Like `read_jobs`, with positions; errors in a row are passed to `on_error`, if given."""
    return parse_rows(read_text(name), name, defaults, format, on_error)


def parse_rows(
    text: str,
    name: str,
    defaults: Mapping[str, Any],
    format: str | None = None,
    on_error: Callable[[JobError], None] | None = None,
) -> list[Row]:
    """Parse the jobs in a text, called `name` in errors. Raises JobError if there are none."""
    kind = format or _SUFFIXES.get(Path(name).suffix.lower()) or sniff(text, _unknown)
    if kind not in FILE_FORMATS:
        raise JobError(f"--format {kind} is not known (known: {', '.join(FILE_FORMATS)})")
    rows: list[Row] = []
    faults = 0
    entries = read_entries(kind, text, _unknown)
    while True:
        try:
            entry = next(entries, None)
        except Fault as fault:  # nothing after broken syntax can be read
            raise _error(name, fault) from None
        if entry is None:
            break
        try:
            rows += _rows(entry, name, defaults)
        except JobError as error:
            if on_error is None:
                raise
            on_error(error)
            faults += 1
    if not rows and not faults:
        raise JobError(f"--from-file {name}: contains no prompt")
    return rows


def read_text(name: str) -> str:
    """Read a file, or standard input (`-`), as UTF-8, or as UTF-16 with a byte order mark."""
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise JobError(f"--from-file {name}: cannot be read ({reason})") from None
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise JobError(f"--from-file {name}, line {line}: not UTF-8 text") from None


def _rows(entry: Entry, name: str, defaults: Mapping[str, Any]) -> list[Row]:
    """The jobs of one entry: one for each seed it lists, or just one."""
    line, cells = entry
    place = f"{name}, line {line}"
    try:
        fields = _fields(cells, defaults)
    except Fault as fault:
        raise _error(name, fault) from None
    seeds = fields.get("seed")
    variants = [{"seed": seed} for seed in seeds] if isinstance(seeds, list) else [{}]
    rows = [Row({**defaults, **fields, **variant}, place) for variant in variants]
    for row in rows:
        try:
            Job(**{key: value for key, value in row.fields.items() if key != "output"}).validate()
        except JobError as error:
            raise JobError(f"--from-file {place}: {error}") from None
    return rows


def _fields(cells: Iterable[Cell], defaults: Mapping[str, Any]) -> dict[str, Any]:
    cells = list(cells)
    tasks = [cell.value for cell in cells if cell.name == "task" and cell.value in TASK_NAMES]
    task = tasks[-1] if tasks else defaults.get("task")
    fields: dict[str, Any] = {}
    seen: dict[str, Cell] = {}
    for cell in cells:
        if cell.typed and cell.value is None:
            continue
        field = _field_of(cell, str(task or "txt2img"))
        several = isinstance(_read_as(field), tuple)
        earlier = seen.get(field, cell)
        if earlier.shared and not cell.shared:
            fields.pop(field, None)
        elif earlier is not cell and not several:
            text = f"{cell.name} and {earlier.name} both set {field}; give one"
            raise Fault(cell.line, cell.column, text)
        seen[field] = cell
        for key, value in _typed(field, cell).items():
            # Values of repeatable flags accumulate.
            fields[key] = fields.get(key, ()) + value if several else value
    return fields


def _field_of(cell: Cell, task: str) -> str:
    if wrong := _unknown(cell.name):
        raise Fault(cell.line, cell.column, wrong)
    known = _names()[_key(cell.name)]
    options = options_of(Job)
    fitting = [name for name in known if name == "output" or options[name].fits(task)]
    if not fitting:
        raise Fault(cell.line, cell.column, f"{cell.name} does not apply to {task}")
    return fitting[0]


def _typed(field: str, cell: Cell) -> dict[str, Any]:
    """The fields that a cell sets; raises Fault for a value of the wrong kind."""
    value = cell.value if cell.typed else _read(field, cell)
    if field == "output":
        if not isinstance(value, str) or not value:
            raise Fault(cell.line, cell.column, f"output must be a file name, not {value!r}")
        if not is_inside(value):
            wrong = f"{value!r} is outside --outdir; use a relative name without '..'"
            raise Fault(cell.line, cell.column, wrong)
        return {field: value}
    if field == "sampler" and isinstance(value, str):
        named = sampler_fields(value)
        if named["sampler"] not in SAMPLER_NAMES:
            raise Fault(cell.line, cell.column, unknown_sampler(value))
        return named
    if field == "grid" and isinstance(value, str):
        if value.strip().lower() == "automatic":  # of the web UI: the sampler's own
            return {}
        if grid_of(value) not in GRID_NAMES:
            raise Fault(cell.line, cell.column, unknown_grid(value))
        return {"grid": grid_of(value)}
    if field == "seed" and isinstance(value, list) and not cell.typed:
        return {field: value}
    if field in _TEXT_OF_A_NUMBER and type(value) in (int, float):
        value = f"{value:g}"
    try:
        checked: Any = vars(from_record({field: value}))[field]
    except JobError as error:
        raise Fault(cell.line, cell.column, str(error)) from None
    return {field: checked}


def _read(field: str, cell: Cell) -> Any:
    """Parse a cell's text by the type of its field."""
    kind, text = _read_as(field), str(cell.value)
    words = text.strip()
    try:
        if isinstance(kind, tuple):
            return json.loads(words) if words.startswith("[") else [words]
        if field == "seed" and "," in words:
            return [int(part) for part in words.split(",") if part.strip()]
        if kind is int:
            return int(words)
        if kind is float:
            return float(words)
    except (ValueError, RecursionError):
        wanted = {int: "a whole number", float: "a number"}.get(kind, "text, or a JSON list")
        text = f"{cell.name} must be {wanted}, not {text!r}"
        raise Fault(cell.line, cell.column, text) from None
    if kind is bool:
        # A flag without a value means true.
        if (words.lower() or "true") not in (*_TRUE, *_FALSE):
            text = f"{cell.name} must be true or false, not {text!r}"
            raise Fault(cell.line, cell.column, text)
        return words.lower() not in _FALSE
    return text


def read_axes(words: Sequence[str], task: str) -> list[list[dict[str, Any]]]:
    """Parse the axes of a matrix, such as `steps=20,30`, into the fields that each value sets.

    Quotes protect commas; whole numbers may be a range, as in `seed=1-4`. Raises JobError.
    """
    axes: list[list[dict[str, Any]]] = []
    seen: set[str] = set()
    for word in words:
        name, equals, text = word.partition("=")
        try:
            values = next(csv.reader([text], skipinitialspace=True, strict=True), [])
            field = _field_of(Cell(0, 0, name, text), task)
            spans = [_span(value) if _read_as(field) is int else [value] for value in values]
            cells = [Cell(0, 0, name, value) for span in spans for value in span]
            axis = [_typed(field, cell) for cell in cells]
        except (Fault, csv.Error) as fault:
            raise JobError(f"--matrix {word}: {fault}") from None
        if not equals or not axis or field in seen:
            wrong = f"{name} is given twice" if field in seen else "values are missing"
            raise JobError(f"--matrix {word}: {wrong}; write it as steps=20,30")
        seen.add(field)
        axes.append(axis)
    return axes


def _span(text: str) -> list[str]:
    match = re.fullmatch(r"\s*(\d{1,20})-(\d{1,20})\s*", text)
    if match is None:
        return [text]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < LIMIT:
        raise Fault(0, 0, f"{text} is not a range of at most {LIMIT} numbers")
    return [str(number) for number in range(first, last + 1)]


def _error(name: str, fault: Fault) -> JobError:
    return JobError(f"--from-file {name}, line {fault.line}, column {fault.column}: {fault}")


def _unknown(name: str) -> str:
    """Describe the error in a field's name; empty for a known name."""
    key = _key(name)
    return "" if key in _names() else f"unknown field {name!r}{nearest(key, _names())}"


def _key(name: str) -> str:
    return name.strip().lstrip("-").replace("-", "_").replace(" ", "_").lower()


@cache
def _names() -> dict[str, list[str]]:
    """The fields that each name may mean, by task; `--C` and `--f` give way to kohya's letters."""
    names: dict[str, list[str]] = {}
    options = options_of(Job)
    for field, detail in options.items():
        if detail.flags or field == "task":
            names.setdefault(field, []).append(field)
    for field, detail in options.items():
        for flag in (flag for flag in detail.flags if len(flag) > 3):
            if field not in names.setdefault(_key(flag), []):
                names[_key(flag)].append(field)
    for alias, field in ALIASES.items():
        names.setdefault(alias, [field])
    return names


@cache
def _read_as(field: str) -> Any:
    """The type of a field's value; the empty tuple for a list of strings."""
    hint = get_type_hints(Job).get(field, str)
    if hint == tuple[str, ...]:
        return ()
    if isinstance(hint, type):
        return hint
    return next(part for part in hint.__args__ if part is not type(None))
