"""Commands and jobs from standard input, line by line, with the model kept from one to the next.

    txt2img --prompt "a cat" --steps 20      a command of ldm, as in a shell
    --prompt "a cat" -o cat.png              flags alone are those of txt2img
    a cat on a mat --steps 20                anything else is a prompt, flags may follow
    {"prompt": "a cat", "seed": 7}           a job, as in a file of jobs

`#` begins a comment, `exit` or the end of the input ends it. A line that fails is reported, and the
shell goes on.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import typer

from ldm.cli.flags import is_option
from ldm.errors import Interrupted, LdmError, UsageError
from ldm.jobs.fields import TASK_NAMES
from ldm.jobs.files import parse_rows
from ldm.jobs.image_formats import with_ending
from ldm.jobs.job import Job
from ldm.jobs.options import nearest, options_of
from ldm.workers.pool import kept_engine

SOME_FAILED = 3
ENDS = ("exit", "quit")
_FLAG = re.compile(r"\s--?[A-Za-z]")


def shell(
    defaults: Sequence[str], run: Callable[[Sequence[str]], int], commands: Collection[str]
) -> int:
    """Run the lines of standard input; `defaults` are flags of every drawing among them.

    `run` takes a command line to its exit code. Returns 3 where some failed, 130 where one was
    interrupted and there is no one at a terminal to go on.
    """
    failed = False
    with kept_engine():
        for number, line in enumerate(_lines(), 1):
            if line.strip() in ENDS:
                break
            try:
                found = read_line(line, number, defaults, commands)
            except LdmError as error:
                typer.echo(f"ldm: error: line {number}: {error}", err=True)
                failed = True
                continue
            for words in found:
                code = run(words)
                failed = failed or code != 0
                if code == Interrupted.exit_code and not sys.stdin.isatty():
                    return code
    return SOME_FAILED if failed else 0


def read_line(
    line: str, number: int, defaults: Sequence[str], commands: Collection[str]
) -> list[list[str]]:
    """The command lines that a line stands for; raises UsageError."""
    words = line.strip()
    if not words or words.startswith("#"):
        return []
    if words.startswith("{"):
        # Lines before it, so that an error names this one.
        rows = parse_rows("\n" * (number - 1) + words, "standard input", {}, "jsonl")
        return [_of_job(row.fields, defaults) for row in rows]
    name = words.split(maxsplit=1)[0]
    if name in commands:
        return [[name, *(defaults if name in TASK_NAMES else ()), *_split(words)[1:]]]
    if is_option(name):
        return [["txt2img", *defaults, *_split(words)]]
    match = _FLAG.search(words)
    prompt = words[: match.start()] if match else words
    flags = _split(words[len(prompt) :])
    prompt = prompt.rstrip()
    if any(flag.partition("=")[0] == "--prompt" for flag in flags):
        raise UsageError(f"no such command: {name}{nearest(name, commands)}")
    return [["txt2img", *defaults, f"--prompt={prompt}", *flags]]


def _of_job(fields: Mapping[str, Any], defaults: Sequence[str]) -> list[str]:
    """The command line of a job."""
    options = options_of(Job)
    words = [str(fields.get("task", "txt2img")), *defaults]
    for name, value in fields.items():
        if name == "task" or value is False:
            continue
        if name == "output":
            words.append(f"--output={with_ending(value, _format_of(defaults))}")
            continue
        flag = next(word for word in options[name].flags if word.startswith("--"))
        if value is True:
            words.append(flag)
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"{flag}={part}" for part in values]
    return words


def _format_of(defaults: Sequence[str]) -> str | None:
    """The format that the flags of every image ask for."""
    words = [word for flag in defaults for word in flag.replace("_", "-").split("=", 1)]
    return next((kind for flag, kind in pairwise(words) if flag == "--format-out"), None)


def _split(words: str) -> list[str]:
    try:
        return shlex.split(words)
    except ValueError as error:
        raise UsageError(f"{error}; write the flags as in a shell") from None


def _lines() -> Iterator[str]:
    """The lines of standard input; at a terminal, with a prompt for each."""
    if not sys.stdin.isatty():
        for content in sys.stdin.buffer:
            yield content.decode("utf-8", "replace")
        return
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (history and editing)
    while True:
        try:
            yield input("ldm> ")
        except EOFError:
            typer.echo("", err=True)
            return
