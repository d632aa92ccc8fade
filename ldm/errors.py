"""The error tree and its exit codes.

Every message is one line that says what is wrong, where, and what to do.

    LdmError            1   something went wrong inside
    ├── UsageError      2   bad input that the user can correct
    │   ├── ConfigError       a YAML or an override
    │   ├── CheckpointError   a weights file, or one that does not fit the YAML
    │   ├── ImageError        an input image
    │   └── JobError          a flag or a field of a job
    ├── OutputClosed    1   the reader of standard output is gone; finished images stay
    ├── WorkersLost     1   workers died again and again; finished images stay
    ├── NonFiniteError  1   NaN or infinity in a stage, even after a retry in float32
    └── Interrupted   130   stopped by the user; finished images stay

A run that continues past a failed job exits with 3.
"""

from __future__ import annotations

import re
from typing import Any

LONGEST = 2000  # characters of a message
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class LdmError(Exception):
    """Root of all errors that this package raises on purpose.

    A message stays one line even if it quotes a file: line breaks and terminal control characters
    are escaped.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers send errors by pickle; rebuild them without calling their constructors."""
        return _rebuild, (type(self), str(self), vars(self))


class UsageError(LdmError):
    """Unusable input; where possible it is detected before anything heavy is loaded."""

    exit_code = 2


class ConfigError(UsageError):
    """A YAML or an override that is invalid."""


class CheckpointError(UsageError):
    """A weights file that cannot be read, or that does not fit its YAML."""


class ImageError(UsageError):
    """An image file that cannot be used."""


class JobError(UsageError):
    """A value in a job that is out of range or contradicts another."""


class NonFiniteError(LdmError):
    """A stage returned NaN or infinity even in float32; `stage` names it."""

    def __init__(self, stage: str, advice: str) -> None:
        super().__init__(f"the {stage} returned NaN or infinity even in float32: {advice}")
        self.stage = stage


class OutputClosed(LdmError):
    """The reader of standard output is gone."""


class WorkersLost(LdmError):
    """Workers died again and again."""


class Interrupted(LdmError):
    """The user stopped the run."""

    exit_code = 130


def _rebuild(kind: type[LdmError], message: str, attributes: dict[str, Any]) -> LdmError:
    error = kind.__new__(kind, message)
    error.args = (message,)
    vars(error).update(attributes)
    return error


def one_line(text: str) -> str:
    """Make a text one printable line: escape control characters, cut the middle of a long text.

    The result has at most LONGEST characters.
    """
    shown = _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    if len(shown) <= LONGEST:
        return shown
    return f"{shown[: LONGEST * 3 // 4 - 5]} ... {shown[-LONGEST // 4 :]}"
