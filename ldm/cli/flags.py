"""Command lines as people type them, turned into the spelling of the option table.

The originals used argparse: `--n_sample 1`, `--n_samples=1`. Here hyphens and underscores are the
same, and a prefix will do where it fits one option only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ldm.errors import UsageError
from ldm.jobs.fields import Fields
from ldm.jobs.options import nearest, options_of
from ldm.jobs.outputs import OutputPlan


@dataclass(frozen=True)
class Flag:
    """One option: the name to hand on, and whether a value follows it."""

    name: str
    takes_value: bool


def make_table(options: Iterable[tuple[Sequence[str], bool]]) -> dict[str, Flag]:
    """The table of options given as (spellings, takes a value); the first long one is handed on."""
    table: dict[str, Flag] = {}
    for spellings, takes_value in options:
        name = next((word for word in spellings if word.startswith("--")), spellings[0])
        for word in spellings:
            table[_key(word)] = Flag(name, takes_value)
    return table


def normalise(
    argv: Sequence[str], table: Mapping[str, Flag], preferred: Collection[str] = ()
) -> list[str]:
    """The same command line with every option spelled as the table has it, values glued on by `=`.

    Where a prefix fits several options and one of them is spelled among `preferred` (the flags of
    the originals), that one is meant. Raises UsageError for an unknown or ambiguous option and for
    a missing value.
    """
    result: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            return [*result, word, *words]
        if not is_option(word) or (not word.startswith("--") and word not in table):
            result.append(word)
            continue
        name, equals, value = word.partition("=")
        flag = find(name, table, preferred)
        if flag.takes_value and not equals:
            value = _take_value(name, words, table, preferred)
            equals = "="
        result.append(f"{flag.name}{equals}{value}")
    return result


def spread(argv: Sequence[str], flag: str) -> list[str]:
    """The same command line with `flag` before every one of the KEY=VALUE words that follow it."""
    result: list[str] = []
    following = False
    for place, word in enumerate(argv):
        if word == "--":
            return [*result, *argv[place:]]
        if following and "=" in word and not is_option(word) and result[-1] != flag:
            result.append(flag)
        following = word == flag or (following and "=" in word and not is_option(word))
        result.append(word)
    return result


def find(name: str, table: Mapping[str, Flag], preferred: Collection[str] = ()) -> Flag:
    """The option of a spelling or a prefix of one; raises UsageError."""
    key = _key(name)
    if key in table:
        return table[key]
    fits = {word: flag for word, flag in table.items() if word.startswith(key)}
    flags = set(fits.values())
    if len(flags) > 1:
        old = {_key(word) for word in preferred}
        flags = {flag for word, flag in fits.items() if word in old} or flags
    if len(flags) == 1:
        return flags.pop()
    if flags:
        known = ", ".join(sorted(flag.name for flag in set(fits.values())))
        raise UsageError(f"{name} could be any of {known}; write more of it")
    spellings = {word: table[word].name for word in table}
    if tasks := tasks_of(key):
        raise UsageError(f"{name} is no option of this command, but of {tasks}")
    hint = nearest(key, spellings)
    raise UsageError(f"no such option: {name}{hint}")


def tasks_of(key: str) -> str:
    """The commands that have an option, where not all do; "" where none has it."""
    for kind in (Fields, OutputPlan):
        for detail in options_of(kind).values():
            if key in map(_key, detail.flags) and detail.tasks:
                return ", ".join(detail.tasks)
    return ""


def is_option(word: str) -> bool:
    """Whether a word is written like an option: not `-`, and not a negative number."""
    return len(word) > 1 and word[0] == "-" and not (word[1].isdigit() or word[1] == ".")


def _take_value(
    name: str, words: list[str], table: Mapping[str, Flag], preferred: Collection[str]
) -> str:
    if not words:
        raise UsageError(f"{name} needs a value")
    if is_option(words[0]) and _is_known(words[0], table, preferred):
        raise UsageError(f"{name} needs a value, and {words[0]} is an option (or write {name}=...)")
    return words.pop(0)


def _is_known(word: str, table: Mapping[str, Flag], preferred: Collection[str]) -> bool:
    if " " in word:
        return False  # argparse's rule: options have no spaces, prompts do
    try:
        find(word.partition("=")[0], table, preferred)
    except UsageError:
        return False
    return True


def _key(word: str) -> str:
    return word.replace("_", "-")
