"""The cells of a job file in any format, each with its line and column.

This module does not interpret field names. Formats: see `ldm.jobs.files`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

_NEWLINE = re.compile(r"\r\n|\r|\n")
_FLAG = re.compile(r"(?:^|(?<=\s))--(?=[A-Za-z])([\w-]+)(=|\s+|$)")
_QUOTED = re.compile(r"""(?s)("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\s*(?=$|\s--[A-Za-z])""")


class Cell(NamedTuple):
    """One value and its position; `typed` marks a JSON value, as opposed to text to be parsed.

    A job's own value overrides a `shared` one.
    """

    line: int
    column: int
    name: str
    value: Any
    typed: bool = False
    shared: bool = False


class Fault(Exception):
    """An error at a line and column, both from 1; the caller adds the file's name."""

    def __init__(self, line: int, column: int, text: str) -> None:
        super().__init__(text)
        self.line, self.column = line, column


Entry = tuple[int, list[Cell]]  # the line of a job, and its cells
CheckName = Callable[[str], str]  # describes the error in a field's name; empty if it is valid


def read_entries(kind: str, text: str, check: CheckName) -> Iterator[Entry]:
    """Read the jobs of a text; `check` validates the names in a table's header. Raises Fault."""
    if kind in ("csv", "tsv"):
        yield from _from_table(text, "\t" if kind == "tsv" else _mark(text), check)
    else:
        yield from _READERS[kind](text)


def sniff(text: str, check: CheckName) -> str:
    """Detect the format: JSON Lines or a table by the first line, JSON by the whole, else txt."""
    first = _first_line(text)
    head = _parsed(first)
    if isinstance(head, dict) and "jobs" not in head:
        return "jsonl"
    if isinstance(_parsed(text), dict | list):
        return "json"
    for kind, mark in (("tsv", "\t"), ("csv", ","), ("csv", ";")):
        cells = [cell.strip().strip('"') for cell in first.split(mark)]
        if len(cells) > 1 and not any(check(cell) for cell in cells):
            return kind
    return "txt"


def _from_lines(text: str) -> Iterator[Entry]:
    """Read a prompt per line, or flags with their values."""
    for number, line in enumerate(_NEWLINE.split(text), 1):
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        if words.startswith("\\#"):
            line = line.replace("\\#", "#", 1)
        yield number, list(_flags(line, number))


def _flags(line: str, number: int) -> Iterator[Cell]:
    """The prompt of a line and the values of its flags; quotes keep `--` inside a value."""
    match = _FLAG.search(line)
    prompt = line[: match.start()] if match else line
    if prompt.strip():
        # A line without flags is the prompt as it is, spaces included.
        column = len(prompt) - len(prompt.lstrip()) + 1
        yield Cell(number, column, "prompt", prompt.strip() if match else prompt)
    while match:
        start, value = match.end(), ""
        quoted = _QUOTED.match(line, start)
        if quoted:
            following = _FLAG.search(line, quoted.end(1))
            value = re.sub(r"\\(.)", r"\1", quoted[1][1:-1])
        elif match[2] != "=" and line.startswith("--", start) and _FLAG.match(line, start):
            following = _FLAG.match(line, start)  # another flag follows: this one has no value
        else:
            following = _FLAG.search(line, start)
            value = line[start : following.start() if following else len(line)].strip()
        yield Cell(number, match.start() + 1, match[1], value)
        match = following


def _from_table(text: str, mark: str, check: CheckName) -> Iterator[Entry]:
    """Read a header and rows; columns count cells."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    header: list[str] = []
    start = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if not header:
                    header = [cell.strip() for cell in cells]
                    _check_header(header, start, check)
                elif any(cell.strip() for cell in cells[len(header) :]):
                    text = f"more cells than the header's {len(header)}; is a comma not quoted?"
                    raise Fault(start, len(header) + 1, text)
                else:
                    places = enumerate(zip(header, cells, strict=False), 1)
                    row = [Cell(start, at, head, cell) for at, (head, cell) in places]
                    yield start, [cell for cell in row if cell.value.strip()]
            start = reader.line_num + 1
    except csv.Error as error:
        raise Fault(start, 1, f"the quoting or the cells are broken ({error})") from None


def _check_header(header: list[str], line: int, check: CheckName) -> None:
    for column, head in enumerate(header, 1):
        if wrong := check(head):
            raise Fault(line, column, wrong)
        if header.index(head) != column - 1:
            raise Fault(line, column, f"the field {head!r} appears twice")


def _mark(text: str) -> str:
    """The separator of a .csv: a semicolon where spreadsheets use commas in numbers."""
    first = _first_line(text)
    return ";" if ";" in first and "," not in first else ","


def _first_line(text: str) -> str:
    return next((line for line in _NEWLINE.split(text) if line.strip()), "")


def _from_json(text: str) -> Iterator[Entry]:
    """Read a list of jobs, an object around it, or one job."""
    decoder = _Decoder(text)
    start = decoder.skip(0)
    if not text.startswith("{", start):
        yield from decoder.array(start)
        decoder.finish()
        return
    spans: dict[str, int] = {}
    value = decoder.value(start)
    if "jobs" not in value:
        decoder.finish()
        yield decoder.entry(start, value)
        return
    for key, at in decoder.members(start):
        if key not in ("jobs", "defaults"):
            text = f"unknown entry {key!r} beside the jobs; put shared fields into 'defaults'"
            raise Fault(*decoder.place(at), text)
        spans[key] = at
    decoder.end = start
    shared: list[Cell] = []
    if "defaults" in spans:
        cells = decoder.entry(spans["defaults"], value["defaults"])[1]
        shared = [cell._replace(shared=True) for cell in cells]
    for line, cells in decoder.array(spans["jobs"]):
        yield line, [*shared, *cells]


def _from_json_lines(text: str) -> Iterator[Entry]:
    for number, line in enumerate(_NEWLINE.split(text), 1):
        if line.strip():
            decoder = _Decoder(line, number)
            start = decoder.skip(0)
            value = decoder.value(start)
            decoder.finish()
            yield decoder.entry(start, value)


_READERS: Mapping[str, Callable[[str], Iterator[Entry]]] = {
    "txt": _from_lines,
    "json": _from_json,
    "jsonl": _from_json_lines,
}


class _Decoder:
    """A JSON decoder that tracks positions; a repeated key is an error."""

    def __init__(self, text: str, line: int = 1) -> None:
        self.text, self.line = text, line
        self.starts = [0, *(match.end() for match in _NEWLINE.finditer(text))]
        self.end = 0  # just after the last value read
        self.json = json.JSONDecoder(object_pairs_hook=self._pairs, parse_constant=self._constant)

    def place(self, at: int) -> tuple[int, int]:
        """Line and column of an offset."""
        row = bisect_right(self.starts, at) - 1
        return self.line + row, at - self.starts[row] + 1

    def skip(self, at: int) -> int:
        """The offset of the next character that is not white space."""
        while at < len(self.text) and self.text[at] in " \t\r\n":
            at += 1
        return at

    def value(self, at: int) -> Any:
        """Decode the value at an offset."""
        try:
            value, self.end = self.json.raw_decode(self.text, at)
        except json.JSONDecodeError as error:
            raise Fault(*self.place(error.pos), f"not JSON: {error.msg}") from None
        except (ValueError, RecursionError) as error:
            reason = str(error) if type(error) is ValueError else "nested too deeply"
            raise Fault(*self.place(at), f"not JSON: {reason}") from None
        return value

    def finish(self) -> None:
        """Raise Fault if anything follows the last value."""
        at = self.skip(self.end)
        if at < len(self.text):
            raise Fault(*self.place(at), "not JSON: unexpected text after the end")

    def array(self, at: int) -> Iterator[Entry]:
        """The jobs of a list."""
        if not self.text.startswith("[", at):
            raise Fault(*self.place(at), "expected a list of jobs, in [ ]")
        at = self.skip(at + 1)
        while not self.text.startswith("]", at):
            value = self.value(at)
            yield self.entry(at, value)
            at = self.skip(self.end)
            if self.text.startswith(",", at):
                at = self.skip(at + 1)
            elif not self.text.startswith("]", at):
                raise Fault(*self.place(at), "not JSON: expected a comma or ]")
        self.end = at + 1

    def members(self, at: int) -> Iterator[tuple[str, int]]:
        """The keys of an object already known to be valid, with the offsets of their values."""
        at = self.skip(at + 1)
        while not self.text.startswith("}", at):
            key = self.value(at)
            at = self.skip(self.skip(self.end) + 1)
            yield key, at
            self.value(at)
            at = self.skip(self.end)
            at = self.skip(at + 1) if self.text.startswith(",", at) else at

    def entry(self, at: int, value: Any) -> Entry:
        """Turn an object, or a string, which is a prompt, into a job."""
        line, column = self.place(at)
        if isinstance(value, str):
            return line, [Cell(line, column, "prompt", value, True)]
        if not isinstance(value, dict):
            raise Fault(line, column, f"a job is an object or a string, not {json.dumps(value)}")
        end = self.end
        spans = dict(self.members(at))
        self.end = end
        cells = [Cell(*self.place(spans[key]), key, part, True) for key, part in value.items()]
        return line, cells

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {repeated!r} appears twice in one object")
        return members

    def _constant(self, word: str) -> NoReturn:
        raise ValueError(f"{word} is not a JSON number")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
