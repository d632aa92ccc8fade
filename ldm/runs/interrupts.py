"""Ctrl-C: once, a run stops when the images in work are finished; twice, it stops at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from ldm.engine.cancel import Cancel

MESSAGE = b"\nldm: stopping after the images in work; press Ctrl-C again to stop at once\n"


class Interrupts:
    """Turns Ctrl-C into a request to `cancel`, for as long as the context lasts.

    While no image is in work (`busy`) the first Ctrl-C stops at once. Off the main thread, or where
    another handler is installed, nothing changes.
    """

    def __init__(self, cancel: Cancel, *, quiet: bool = False) -> None:
        self.cancel = cancel
        self.quiet = quiet
        self.busy = False
        self._listens = False

    def __enter__(self) -> Interrupts:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._hear)
            self._listens = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.cancel.asked or not self.busy:
            self.cancel.at_once()
            raise KeyboardInterrupt
        self.cancel.after_images()
        if not self.quiet:
            os.write(2, MESSAGE)  # a signal may come in the middle of a print
