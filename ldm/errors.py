"""The error tree and its exit codes.

Every message is one line that says what is wrong, where, and what to do.

    LdmError            1   something went wrong inside
    ├── UsageError      2   bad input: the user can mend it
    │   ├── ConfigError       a YAML, an override
    │   ├── CheckpointError   a weights file, or one that does not fit the YAML
    │   ├── ImageError        an image to be read
    │   └── JobError          a flag or a field of a job
    ├── OutputClosed    1   who read our output has gone; what was finished is kept
    ├── NonFiniteError  1   NaN or infinity in a stage that was tried again in float32
    └── Interrupted   130   stopped by the user; what was finished is kept

A run that went on after a job of it failed ends with 3.
"""

from __future__ import annotations

import re
from typing import Any

LONGEST = 2000  # characters of a message
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class LdmError(Exception):
    """Root of all errors that this package raises on purpose.

    What a file brought into the message stays one line of it: signs that would end the line, or
    that a terminal would obey, are written as escapes.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors come from workers; made again they are what they were, however they are made."""
        return _made_again, (type(self), str(self), vars(self))


class UsageError(LdmError):
    """Input that cannot be used; found before anything heavy is loaded where possible."""

    exit_code = 2


class ConfigError(UsageError):
    """A YAML or an override that cannot be understood."""


class CheckpointError(UsageError):
    """A weights file that cannot be read, or that does not fit its YAML."""


class ImageError(UsageError):
    """An image file that cannot be used."""


class JobError(UsageError):
    """A value in a job that is out of range or contradicts another."""


class NonFiniteError(LdmError):
    """A stage gave NaN or infinity even in float32; `stage` names it."""

    def __init__(self, stage: str, advice: str) -> None:
        super().__init__(f"the {stage} gave values that are not finite, in float32 too: {advice}")
        self.stage = stage


class OutputClosed(LdmError):
    """Standard output has no reader any more."""


class Interrupted(LdmError):
    """The user stopped the run."""

    exit_code = 130


def _made_again(kind: type[LdmError], message: str, told: dict[str, Any]) -> LdmError:
    error = kind.__new__(kind, message)
    error.args = (message,)
    vars(error).update(told)
    return error


def one_line(text: str) -> str:
    """A text as one line that can be shown: control signs as escapes, the middle of a long one cut.

    LONGEST characters at most.
    """
    shown = _CONTROL.sub(lambda sign: sign[0].encode("unicode_escape").decode(), text)
    if len(shown) <= LONGEST:
        return shown
    return f"{shown[: LONGEST * 3 // 4 - 5]} ... {shown[-LONGEST // 4 :]}"
