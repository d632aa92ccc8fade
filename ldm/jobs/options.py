"""Options: the flags, choices and help of a dataclass field.

Flags, columns of job files, the schema and messages all derive from them.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ldm.errors import JobError

_LONGEST_NAME = 100  # characters; longer text is not a typo, and slow to compare


@dataclass(frozen=True)
class Option:
    """How a field appears on the command line, and its meaning; empty `tasks` means all tasks."""

    flags: tuple[str, ...] = ()
    help: str = ""
    choices: tuple[str, ...] = ()
    metavar: str = ""
    note: str = ""  # the note printed when an old flag without effect is used
    tasks: tuple[str, ...] = ()

    def fits(self, task: str) -> bool:
        """Whether the option applies to a task."""
        return not self.tasks or task in self.tasks


def option(
    default: Any,
    *flags: str,
    help: str = "",
    choices: Iterable[str] = (),
    metavar: str = "",
    note: str = "",
    tasks: Iterable[str] = (),
) -> Any:
    """A dataclass field with an `Option`; without flags it cannot be set on the command line."""
    detail = Option(flags, help, tuple(choices), metavar, note, tuple(tasks))
    return field(default=default, metadata={"option": detail})


def options_of(kind: type) -> dict[str, Option]:
    """The options of a dataclass by field name."""
    return {entry.name: entry.metadata["option"] for entry in dataclasses.fields(kind)}


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the most similar known one, if any."""
    if len(name) > _LONGEST_NAME:
        return ""
    by_key = {word.lower(): word for word in reversed(list(known))}
    close = difflib.get_close_matches(name.lower(), by_key, n=1, cutoff=0.5)
    return f"; did you mean {by_key[close[0]]}?" if close else ""


def check_choices(values: Any) -> None:
    """Raise JobError for a field whose value is not one of its choices."""
    for name, detail in options_of(type(values)).items():
        value = vars(values)[name]
        if detail.choices and value is not None and value not in detail.choices:
            flag = detail.flags[0] if detail.flags else name
            known = ", ".join(detail.choices)
            hint = nearest(str(value), detail.choices)
            raise JobError(f"{flag} {value!r} is not known{hint} (known: {known})")


def check_range(flag: str, value: int | None, low: int | None, high: int | None) -> None:
    """Raise JobError for a number outside a range; a bound or value of None is not checked."""
    if value is None:
        return
    if low is not None and value < low:
        span = f"{low} to {high}" if high is not None else f"{low} or more"
        raise JobError(f"{flag} must be {span}, not {value}")
    if high is not None and value > high:
        span = f"{low} to {high}" if low is not None else f"at most {high}"
        raise JobError(f"{flag} must be {span}, not {value}")
