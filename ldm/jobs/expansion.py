"""Prompts with choices and wildcards, and the combinations of a matrix.

    {a|b}           one option, drawn from the seed; an option may be empty
    {3::a|b}        a three times as often as b
    {e$$a|b}        every option, each in a prompt of its own
    {2$$a|b|c}      two options, joined by ", "; {1-3$$a|b|c} one to three
    {2$$ and $$a|b} joined by " and "
    __name__        a line of wildcards/name.txt, which may use this syntax too
    \\{ \\} \\| \\_ \\$  the literal characters; other backslashes stay as they are

In {e$$...} and {2$$...}, an option that is only __name__ stands for every line of the file.
A draw depends only on the seed and its position in the prompt: it is the same in all prompts that
{e$$...} makes, and editing a later part of the prompt does not change it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from ldm.errors import JobError
from ldm.jobs.job import LONGEST_PROMPT
from ldm.jobs.options import nearest

LIMIT = 10_000
MAX_DEPTH = 40
MOST_WORK = 1_000_000  # parts visited in one text, each weighted by its depth
MOST_CHARACTERS = 10_000_000  # in all prompts of one text together
_WILDCARD = re.compile(r"__([^\W_](?:[\w./-]{0,200}?[^\W_])?)__(?!_)")
_WEIGHT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)::")
_AMOUNT = re.compile(r"\s*(?:(e)|(\d+)(?:-(\d+))?)\s*\$\$")
_ESCAPABLE = "{}|_$"


@dataclass(frozen=True)
class Wildcard:
    """A random line of a wildcard file."""

    name: str


@dataclass(frozen=True)
class Choice:
    """A draw from weighted options; with `most` None, every option in turn."""

    options: tuple[tuple[float, Parts], ...]
    least: int = 1
    most: int | None = 1
    separator: str = ", "
    listed: bool = False  # a lone wildcard stands for all its lines


Parts = tuple["str | Wildcard | Choice", ...]


def expand(text: str, seed: int, *, limit: int = LIMIT) -> list[str]:
    """Expand a text into its prompts, in order; without {e$$...} there is just one.

    Raises JobError for an unmatched brace, a missing wildcard file, or more than `limit` prompts.
    """
    if len(text) > LONGEST_PROMPT:
        raise JobError(f"{_short(text)} has more than {LONGEST_PROMPT} characters; shorten it")
    prompts: list[str] = []
    left = MOST_CHARACTERS
    for prompt in _Expansion(text).sequence(_parse(text), (str(seed),)):
        left -= len(prompt)
        if len(prompts) == limit or left < 0:
            raise JobError(f"{_short(text)} expands to over {limit} prompts; use fewer options")
        prompts.append(prompt)
    return prompts


def expand_matrix(
    fields: Mapping[str, Any], axes: Sequence[Sequence[Mapping[str, Any]]], *, limit: int = LIMIT
) -> list[dict[str, Any]]:
    """Every combination of the axes' values, on top of `fields`; the last axis changes fastest.

    A value is a mapping of the fields it sets. Raises JobError for more than `limit` combinations.
    """
    count = 1
    for axis in axes:
        count *= len(axis)
    if count > limit:
        sizes = " x ".join(str(len(axis)) for axis in axes)
        raise JobError(f"--matrix makes {sizes} = {count} jobs; at most {limit} are allowed")
    combined = []
    for values in itertools.product(*axes):
        job = dict(fields)
        for value in values:
            job |= value
        combined.append(job)
    return combined


def wildcard_folders() -> list[Path]:
    """The folders to search for wildcards, in order: ./wildcards and those in $LDM_WILDCARDS."""
    named = os.environ.get("LDM_WILDCARDS", "").split(os.pathsep)
    return [Path("wildcards"), *(Path(part) for part in named if part)]


# --- parsing --------------------------------------------------------------------------------------


@dataclass
class _Parser:
    """A text and a position in it; messages count columns from 1."""

    text: str
    at: int = 0
    depth: int = 0

    def sequence(self, stops: str) -> Parts:
        """Parse up to a character of `stops`, or to the end."""
        parts: list[str | Wildcard | Choice] = []
        plain = ""
        while self.at < len(self.text) and self.text[self.at] not in stops:
            part = self.part()
            if isinstance(part, str):
                plain += part
            else:
                parts += [plain, part] if plain else [part]
                plain = ""
        return (*parts, plain) if plain else tuple(parts)

    def part(self) -> str | Wildcard | Choice:
        """Parse one character, wildcard or choice."""
        text, at = self.text, self.at
        if text[at] == "\\" and at + 1 < len(text):
            self.at += 2
            return text[at + 1] if text[at + 1] in _ESCAPABLE else text[at : at + 2]
        if text[at] == "{":
            return self.choice()
        if text[at] == "}":
            raise self.fault("unmatched }", at)
        if match := _WILDCARD.match(text, at):
            self.at = match.end()
            return Wildcard(match[1])
        self.at += 1
        return text[at]

    def choice(self) -> Choice:
        """Parse a choice, from its opening brace to its closing one."""
        start = self.at
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.fault("braces are nested too deeply", start)
        self.at += 1
        choice = Choice(())
        if match := _AMOUNT.match(self.text, self.at):
            least = self.amount(match[2] or "1")
            most = None if match[1] else self.amount(match[3]) if match[3] else least
            choice = Choice((), least, most, listed=True)
            self.at = match.end()
            end = self.text.find("$$", self.at)
            if end >= 0 and not set(self.text[self.at : end]) & set("{}|\\"):
                choice = replace(choice, separator=self.text[self.at : end])
                self.at = end + 2
        options = [self.option()]
        while self.text.startswith("|", self.at):
            self.at += 1
            options.append(self.option())
        if self.at >= len(self.text):
            raise self.fault("unmatched {", start)
        self.at += 1
        self.depth -= 1
        if not any(weight for weight, _ in options):
            raise self.fault("every weight of the choice is 0", start)
        return replace(choice, options=tuple(options))

    def amount(self, digits: str) -> int:
        """Parse the number of options to draw."""
        if len(digits) > 20 or int(digits) > LIMIT:
            raise self.fault(f"no choice has more than {LIMIT} options", self.at)
        return int(digits)

    def option(self) -> tuple[float, Parts]:
        """Parse an option and its weight."""
        weight = 1.0
        if match := _WEIGHT.match(self.text, self.at):
            weight = float(match[1])
            self.at = match.end()
        return weight, self.sequence("|}")

    def fault(self, what: str, at: int) -> JobError:
        """The error for a position in the text."""
        return JobError(
            f"{_short(self.text)}, column {at + 1}: {what}; "
            "put a backslash before a brace to use it literally"
        )


def _parse(text: str) -> Parts:
    return _Parser(text).sequence("")


# --- drawing --------------------------------------------------------------------------------------

Place = tuple[str, ...]  # the seed, then the path to a position in the prompt


@dataclass
class _Expansion:
    """The expansion of one text, with a bound on its total work."""

    text: str
    left: int = MOST_WORK
    known: dict[str, list[tuple[float, Parts]]] = field(default_factory=dict)  # lines by wildcard

    def sequence(self, parts: Parts, place: Place) -> Iterator[str]:
        """Every text of a sequence: the product of its parts, the last changing fastest."""
        if not parts:
            yield ""
            return
        texts = [""] * len(parts)
        open_parts = [self.texts(parts[0], (*place, "0"))]
        while open_parts:
            depth = len(open_parts)
            text = next(open_parts[-1], None)
            if text is None:
                open_parts.pop()
                continue
            texts[depth - 1] = text
            if depth < len(parts):
                open_parts.append(self.texts(parts[depth], (*place, str(depth))))
                continue
            if sum(map(len, texts)) > LONGEST_PROMPT:
                raise JobError(
                    f"{_short(self.text)} becomes longer than {LONGEST_PROMPT} characters"
                )
            yield "".join(texts)

    def texts(self, part: str | Wildcard | Choice, place: Place) -> Iterator[str]:
        """Every text of a part."""
        self.left -= len(place)
        if self.left < 0:
            raise JobError(f"{_short(self.text)} expands to too much; use fewer choices")
        if isinstance(part, str):
            yield part
        elif isinstance(part, Wildcard):
            lines = self.lines(part.name, place)
            index = _draw(place, [weight for weight, _ in lines])
            yield from self.sequence(lines[index][1], (*place, part.name, str(index)))
        else:
            yield from self.chosen(part, place)

    def chosen(self, choice: Choice, place: Place) -> Iterator[str]:
        """Every text of a choice."""
        options = self.listed(choice, place) if choice.listed else list(choice.options)
        if choice.most is None:
            for index, (_, option) in enumerate(options):
                yield from self.sequence(option, (*place, str(index)))
            return
        low, high = sorted((choice.least, choice.most))
        span = high - low + 1
        amount = low + (_draw((*place, "amount"), [1.0] * span) if span > 1 else 0)
        weights = [weight for weight, _ in options]
        parts: list[str | Wildcard | Choice] = []
        for turn in range(min(amount, sum(weight > 0 for weight in weights))):
            index = _draw((*place, f"turn {turn}"), weights)
            weights[index] = 0  # no option is drawn twice
            parts += [choice.separator, *options[index][1]] if turn else options[index][1]
        yield from self.sequence(tuple(parts), place)

    def listed(self, choice: Choice, place: Place) -> list[tuple[float, Parts]]:
        """The options, with each lone wildcard replaced by all its lines."""
        options: list[tuple[float, Parts]] = []
        for weight, option in choice.options:
            if len(option) == 1 and isinstance(option[0], Wildcard):
                options += [(weight * w, line) for w, line in self.lines(option[0].name, place)]
            else:
                options.append((weight, option))
        return options

    def lines(self, name: str, place: Place) -> list[tuple[float, Parts]]:
        """The lines of a wildcard, each with its weight."""
        if len(place) > 4 * MAX_DEPTH:
            raise JobError(f"wildcard __{name}__: it contains itself")
        if name not in self.known:
            self.known[name] = _lines(name)
        return self.known[name]


def _draw(place: Place, weights: Sequence[float]) -> int:
    """Draw an index by weight, from the place alone: the same in every version of Python."""
    digest = hashlib.sha256("\0".join(place).encode("utf-8", "surrogatepass")).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64 * sum(weights)
    for index, weight in enumerate(weights):
        share -= weight
        if share < 0:
            return index
    return max(index for index, weight in enumerate(weights) if weight > 0)


# --- wildcards ------------------------------------------------------------------------------------


def _lines(name: str) -> list[tuple[float, Parts]]:
    """The lines of a wildcard, each with its weight (`2::red`); `#` lines are skipped."""
    file = _find(name)
    return _read(file, file.stat().st_mtime_ns)


@cache
def _read(file: Path, changed: int) -> list[tuple[float, Parts]]:
    """The parsed lines of a file; `changed` makes the cache read a changed file again."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise JobError(f"wildcard {file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise JobError(f"wildcard {file}: not UTF-8 text") from None
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text)]
    weighted = []
    for line in lines:
        if not line or line.startswith("#"):
            continue
        match = _WEIGHT.match(line)
        try:
            parts = _parse(line[match.end() :] if match else line)
        except JobError as error:
            raise JobError(f"wildcard {file}: {error}") from None
        weighted.append((float(match[1]) if match else 1.0, parts))
    if not any(weight for weight, _ in weighted):
        raise JobError(f"wildcard {file}: it has no line to draw")
    return weighted


def _find(name: str) -> Path:
    folders = wildcard_folders()
    if ".." in name.split("/"):
        raise JobError(f"wildcard __{name}__: it must be in {folders[0]} or $LDM_WILDCARDS")
    for folder in folders:
        if (path := folder / f"{name}.txt").is_file():
            return path
    available = [
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in folders
        for path in sorted(folder.rglob("*.txt"))
    ]
    known = f" (known: {', '.join(available[:10])})" if available else ""
    searched = ", ".join(str(folder) for folder in folders)
    raise JobError(
        f"wildcard __{name}__: no {name}.txt in the wildcard folders ({searched})"
        f"{nearest(name, available)}{known}"
    )


def _short(text: str) -> str:
    return f"prompt {text if len(text) <= 60 else text[:57] + '...'!r}"
