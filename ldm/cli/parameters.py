"""Options and arguments of a command as `typer` takes them, made from the fields of dataclasses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import typer

from ldm.errors import JobError
from ldm.jobs.options import options_of


def parameters(
    kind: type, names: Sequence[str] | None = None, task: str = "txt2img"
) -> list[inspect.Parameter]:
    """The options of a dataclass's fields, all or some; one that is not given is None."""
    hints = get_type_hints(kind)
    found = []
    for name, detail in options_of(kind).items():
        if not detail.flags or not detail.fits(task) or (names is not None and name not in names):
            continue
        base = _base(hints[name])
        parse, metavar = _parser(base, detail.flags[0])
        metavar = detail.metavar or _listed(detail.choices) or metavar
        default = typer.Option(
            None,
            *detail.flags,
            help=detail.help,
            metavar=None if base is bool else metavar,
            parser=parse,
            show_default=False,
        )
        kind_or_none = (list[str] if base is tuple else base) | None
        found.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind_or_none
            )
        )
    return found


def _listed(choices: Sequence[str]) -> str:
    """Choices as the value of an option in help; too many are left to its error message."""
    return "|".join(choices) if len(choices) <= 6 else "NAME"


def _base(hint: Any) -> type:
    """int for `int | None`, tuple for `tuple[str, ...]`."""
    if hint == tuple[str, ...]:
        return tuple
    if isinstance(hint, type):
        return hint
    base: type = next(part for part in hint.__args__ if part is not type(None))
    return base


def _parser(base: type, flag: str) -> tuple[Callable[[str], Any] | None, str]:
    """How a number is read, with an error that names the flag; and what it is called in help."""
    if base is int:
        return (lambda text: _whole(flag, text)), "N"
    if base is float:
        return (lambda text: _real(flag, text)), "X"
    return None, "TEXT"


def _whole(flag: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise JobError(f"{flag} must be a whole number, not {text!r}") from None


def _real(flag: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise JobError(f"{flag} must be a number, not {text!r}") from None


def argument(
    name: str, kind: Any, metavar: str, help: str, default: Any = ...
) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=typer.Argument(default, metavar=metavar, help=help, show_default=False),
        annotation=kind,
    )
