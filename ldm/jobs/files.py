"""Files of jobs: a prompt or a job a line, a table, or JSON; fields typed as in a job's record.

    txt    a prompt a line; `#` lines and blank lines are skipped; flags may follow the prompt
           (`a cat --n blurry --s 20`, as kohya's) or name it (`--prompt "a cat" --steps 20`,
           as the web UI's)
    csv    a header with the names of fields or flags, then a job a line; tsv the same with tabs
    json   a list of objects, or an object with the list as "jobs" and what they share as "defaults"
    jsonl  an object a line

An empty cell and null are as if not given. Every error names file, line and column.
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
from ldm.jobs.fields import FILE_FORMATS, SAMPLER_NAMES, TASK_NAMES
from ldm.jobs.job import Job, from_record
from ldm.jobs.metadata import GRID_TITLES, SAMPLER_TITLES
from ldm.jobs.options import nearest, options_of
from ldm.jobs.templates import is_inside

_SUFFIXES = {f".{name}": name for name in FILE_FORMATS} | {".ndjson": "jsonl", ".tab": "tsv"}
# What other programs call our fields, beside the flags: the web UI, kohya's letters, diffusers.
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
    "batch_size": "n_samples",
    "hr_scale": "hires",
    "hr_second_pass_steps": "hires_steps",
    "subseed": "variation_seed",
    "subseed_strength": "variation_strength",
    "sd_model": "model",
    "init_image": "init_img",
    "mask_image": "mask",
}
# Fields that are texts, since they may be more than the number that they often are.
_TEXT_OF_A_NUMBER = ("hires",)
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Row:
    """The fields of one job, and where they were written ("jobs.csv, line 3").

    Beside fields of Job there may be `output`, a name for its file.
    """

    fields: dict[str, Any]
    place: str


def read_jobs(
    name: str, defaults: Mapping[str, Any], format: str | None = None
) -> list[dict[str, Any]]:
    """The fields of every job of a file, over `defaults`; `-` is standard input.

    The format is told by the name's ending, else by the content. Raises JobError.
    """
    return [row.fields for row in read_rows(name, defaults, format)]


def read_rows(
    name: str,
    defaults: Mapping[str, Any],
    format: str | None = None,
    on_error: Callable[[JobError], None] | None = None,
) -> list[Row]:
    """The same with the place of each; a row that cannot be used goes to `on_error`, if given."""
    return parse_rows(read_text(name), name, defaults, format, on_error)


def parse_rows(
    text: str,
    name: str,
    defaults: Mapping[str, Any],
    format: str | None = None,
    on_error: Callable[[JobError], None] | None = None,
) -> list[Row]:
    """The jobs in a text; `name` is what errors call it. Raises JobError where there is none."""
    kind = format or _SUFFIXES.get(Path(name).suffix.lower()) or sniff(text, _unknown)
    if kind not in FILE_FORMATS:
        raise JobError(f"--format {kind} is not known (known: {', '.join(FILE_FORMATS)})")
    rows: list[Row] = []
    faults = 0
    entries = read_entries(kind, text, _unknown)
    while True:
        try:
            entry = next(entries, None)
        except Fault as fault:  # what follows broken syntax cannot be read
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
        raise JobError(f"--from-file {name}: no prompt in it")
    return rows


def read_text(name: str) -> str:
    """The text of a file, or of standard input (`-`): UTF-8, or UTF-16 with its mark."""
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
    """The jobs of one entry: one, or one for each of the seeds it lists."""
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
        before = seen.get(field, cell)
        if before.shared and not cell.shared:
            fields.pop(field, None)
        elif before is not cell and not several:
            text = f"{cell.name} and {before.name} both set {field}; give one"
            raise Fault(cell.line, cell.column, text)
        seen[field] = cell
        for key, value in _typed(field, cell).items():
            # Flags that may be repeated add up.
            fields[key] = fields.get(key, ()) + value if several else value
    return fields


def _field_of(cell: Cell, task: str) -> str:
    if wrong := _unknown(cell.name):
        raise Fault(cell.line, cell.column, wrong)
    known = _names()[_key(cell.name)]
    options = options_of(Job)
    fitting = [name for name in known if name == "output" or options[name].fits(task)]
    if not fitting:
        raise Fault(cell.line, cell.column, f"{cell.name} means nothing for {task}")
    return fitting[0]


def _typed(field: str, cell: Cell) -> dict[str, Any]:
    """The fields that a cell sets; raises Fault for a value of the wrong kind."""
    value = cell.value if cell.typed else _read(field, cell)
    if field == "output":
        if not isinstance(value, str) or not value:
            raise Fault(cell.line, cell.column, f"a name for the file is wanted, not {value!r}")
        if not is_inside(value):
            wrong = f"{value!r} leads out of --outdir; give a name in it, without '..'"
            raise Fault(cell.line, cell.column, wrong)
        return {field: value}
    if field == "sampler" and isinstance(value, str):
        return sampler_fields(value)
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
    """The value of a text, by the kind of its field."""
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
        wanted = {int: "a whole number", float: "a number"}.get(kind, "a text, or a JSON list")
        text = f"{cell.name} must be {wanted}, not {text!r}"
        raise Fault(cell.line, cell.column, text) from None
    if kind is bool:
        # A flag alone switches on.
        if (words.lower() or "true") not in (*_TRUE, *_FALSE):
            text = f"{cell.name} must be true or false, not {text!r}"
            raise Fault(cell.line, cell.column, text)
        return words.lower() not in _FALSE
    return text


def read_axes(words: Sequence[str], task: str) -> list[list[dict[str, Any]]]:
    """The values of each axis of a matrix, as the fields they set, from `steps=20,30` and so on.

    A value with a comma is quoted; whole numbers may be a span, as in `seed=1-4`. Raises JobError.
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
            wrong = f"{name} comes twice" if field in seen else "values are missing"
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
        raise Fault(0, 0, f"{text} is no span of at most {LIMIT} numbers")
    return [str(number) for number in range(first, last + 1)]


def sampler_fields(name: str) -> dict[str, Any]:
    """Sampler, and grid where the name has one, of a name that the web UI shows ("DPM++ 2M")."""
    if name in SAMPLER_NAMES:
        return {"sampler": name}
    title, grid = name.strip().lower(), {}
    for own, suffix in GRID_TITLES.items():
        if title.endswith(f" {suffix.lower()}"):
            title, grid = title[: -len(suffix) - 1].strip(), {"grid": own}
    titles = {shown.lower(): own for own, shown in SAMPLER_TITLES.items()}
    return {"sampler": titles.get(title, name), **grid}


def _error(name: str, fault: Fault) -> JobError:
    return JobError(f"--from-file {name}, line {fault.line}, column {fault.column}: {fault}")


def _unknown(name: str) -> str:
    """What is wrong with the name of a field; nothing where it is known."""
    key = _key(name)
    return "" if key in _names() else f"unknown field {name!r}{nearest(key, _names())}"


def _key(name: str) -> str:
    return name.strip().lstrip("-").replace("-", "_").lower()


@cache
def _names() -> dict[str, list[str]]:
    """The fields that each name may mean, by task; `--C` and `--f` are left to kohya's letters."""
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
    """The type of a field's value; the empty tuple for a list of texts."""
    hint = get_type_hints(Job).get(field, str)
    if hint == tuple[str, ...]:
        return ()
    if isinstance(hint, type):
        return hint
    return next(part for part in hint.__args__ if part is not type(None))
