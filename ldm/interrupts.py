"""Ctrl-C: once, a run stops when the pictures in work are finished; twice, it stops at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

TOLD = b"\nldm: stopping when the pictures in work are finished; Ctrl-C once more stops at once\n"


class Interrupts:
    """Listens to Ctrl-C for a while; `asked` is whether to stop.

    Where no picture is in work (`busy`) the first one stops at once. Off the main thread, or where
    someone else listens, all is as it was.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.asked = False
        self.busy = False
        self.quiet = quiet
        self.listens = False

    def __enter__(self) -> Interrupts:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._hear)
            self.listens = True
        return self

    def __exit__(self, *_: object) -> None:
        if self.listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Stop if that was asked for; to be called when the pictures in work are finished."""
        if self.asked:
            raise KeyboardInterrupt

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked or not self.busy:
            raise KeyboardInterrupt
        self.asked = True
        if not self.quiet:
            os.write(2, TOLD)  # a signal may come in the middle of a print
