"""Jobs that fail: counted where the run goes on after them, raised where it does not."""

from __future__ import annotations

from dataclasses import dataclass

from ldm.engine.events import JobFailed, OnEvent
from ldm.errors import LdmError, UsageError


@dataclass
class Failures:
    """How many jobs of a run failed; `keep_going` says whether the run goes on after one."""

    report: OnEvent
    keep_going: bool
    count: int = 0

    def add(self, error: LdmError, place: str) -> None:
        """Count and report the error of a job; raise it where the run does not go on.

        `place` says where the job was written (a file and a line); a job of the command line has
        none, and its error is always raised.
        """
        text = f"--from-file {place}: {error}" if place and place not in str(error) else str(error)
        if not self.keep_going or not place:
            raise type(error)(text) if isinstance(error, UsageError) else error
        self.add_text(text)

    def add_text(self, text: str, count: int = 1) -> None:
        """Report a failure and count it for a number of jobs."""
        self.report(JobFailed(text))
        self.count += count
