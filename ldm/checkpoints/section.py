"""A `target:`/`params:` pair of a YAML, and the check of its parameters by name and type."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ldm.checkpoints.config import Config
from ldm.errors import ConfigError

Kind = tuple[type, ...]
T = TypeVar("T")

INT: Kind = (int,)
REAL: Kind = (int, float)
FLAG: Kind = (bool,)
TEXT: Kind = (str,)
LIST: Kind = (list,)
TREE: Kind = (dict,)

# Sections of the file that do not describe the model.
INERT_SECTIONS = frozenset({"data", "lightning", "sampling", "train"})
# Fields besides `target` and `params` that only training reads.
INERT_FIELDS = frozenset({"base_learning_rate"})

_KIND_NAMES: Mapping[type, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


@dataclass(frozen=True)
class Section:
    """One `target:` with its `params:`, its file and its path in it."""

    source: str
    path: str
    target: str
    params: dict[str, Any]

    def error(self, key: str, problem: str) -> ConfigError:
        """A ConfigError that names the file and the dotted key of a parameter of this section."""
        return ConfigError(f"{self.source}: {self.path}.params.{key} {problem}")

    def section(self, key: str) -> Section | None:
        """The nested section under a parameter, or None if it is missing."""
        value = self.params.get(key)
        return None if value is None else _section(self.source, f"{self.path}.params.{key}", value)

    def listed(self, key: str, fields: Mapping[str, Kind]) -> list[tuple[Section, dict[str, Any]]]:
        """The nested sections in a list under a parameter, each with its further fields in use.

        Raises ConfigError for what is no such list, or a field of the wrong type.
        """
        values = self.params.get(key)
        if not isinstance(values, list) or not values:
            raise self.error(key, "must be a list of sections with a `target:`")
        found = []
        for place, value in enumerate(values):
            path = f"{self.path}.params.{key}[{place}]"
            more = {k: v for k, v in value.items() if k in fields} if type(value) is dict else {}
            for name, given in more.items():
                if given is not None and not _fits(given, fields[name]):
                    kinds = " or ".join(_KIND_NAMES[kind] for kind in fields[name])
                    raise ConfigError(f"{self.source}: {path}.{name} must be {kinds}")
            rest = {k: v for k, v in value.items() if k not in more} if more else value
            found.append((_section(self.source, path, rest), more))
        return found


@dataclass(frozen=True)
class Parameters:
    """The parameters of one target: those in use, with their types, and those without effect here.

    A `fixed` parameter would change the network in a way that no released model uses, so only the
    value given here is supported. Null always means the same as omitting a parameter.
    """

    takes: Mapping[str, Kind] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    inert: frozenset[str] = frozenset()
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def check(self, section: Section, key: str | None = None) -> dict[str, Any]:
        """The parameters in use of a section, or of the plain mapping under its parameter `key`.

        Raises ConfigError for an unknown name (with the nearest known one), a wrong type or a
        missing parameter.
        """
        params = section.params if key is None else section.params.get(key) or {}
        prefix = "" if key is None else f"{key}."
        used: dict[str, Any] = {}
        for name, value in params.items():
            where = f"{prefix}{name}"
            if name in self.fixed:
                if value is not None and value != self.fixed[name]:
                    raise section.error(where, f"must be {self.fixed[name]!r}, not {value!r}")
            elif name in self.takes:
                if value is None:
                    continue
                if not _fits(value, self.takes[name]):
                    kinds = " or ".join(_KIND_NAMES[kind] for kind in self.takes[name])
                    raise section.error(where, f"must be {kinds}, not {value!r}")
                used[name] = value
            elif name not in self.inert:
                known = [*self.takes, *sorted(self.inert), *self.fixed]
                raise section.error(where, f"is not a parameter; {nearest(str(name), known)}")
        for name in sorted(self.needs - used.keys()):
            raise section.error(f"{prefix}{name}", "is missing")
        return used


@dataclass(frozen=True)
class Spec(Generic[T]):
    """How to build one target from its section and the parameters in use."""

    build: Callable[[Section, dict[str, Any]], T]
    parameters: Parameters = field(default_factory=Parameters)


def model_section(config: Config) -> Section:
    """The `model:` section; raises ConfigError if it is missing, or for unknown sections."""
    known = {"model"} | INERT_SECTIONS
    for key in config.tree:
        if key not in known:
            raise ConfigError(f"{config.source}: unknown section {key!r}; {nearest(key, known)}")
    if "model" not in config.tree:
        raise ConfigError(f"{config.source}: has no `model:` section; is it the YAML of a model?")
    return _section(config.source, "model", config.tree["model"])


def names(text: str) -> frozenset[str]:
    """A set of names from a text that separates them with spaces."""
    return frozenset(text.split())


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most similar to an unknown one, worded as the end of a message."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)
    return f"the nearest known name is {close[0]!r}" if close else "none is known here"


def _section(source: str, path: str, value: object) -> Section:
    if not isinstance(value, dict) or not isinstance(value.get("target"), str):
        raise ConfigError(f"{source}: {path} must have a `target:` (and `params:`)")
    known = {"target", "params"} | INERT_FIELDS
    for key in value:
        if key not in known:
            raise ConfigError(f"{source}: unknown key {path}.{key}; {nearest(str(key), known)}")
    params = value.get("params")
    if params is None:
        params = {}
    if not isinstance(params, dict):
        raise ConfigError(f"{source}: {path}.params must be a mapping of names to values")
    return Section(source, path, value["target"], {str(k): v for k, v in params.items()})


def _fits(value: object, kinds: Kind) -> bool:
    # In Python booleans are integers; in a YAML they are not.
    return isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
