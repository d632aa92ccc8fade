"""Stopping a run by a value: whoever starts a run may ask it to stop, from any thread."""

from __future__ import annotations

import threading


class Cancelled(Exception):
    """The run stopped on request."""


class Cancel:
    """A request to stop a run: when the images in work are finished, or at the next step.

    A run calls `check` when its images in work are finished, and `check_step` within them.
    """

    def __init__(self) -> None:
        self._after_images = threading.Event()
        self._at_once = threading.Event()

    @property
    def asked(self) -> bool:
        """Whether a stop was requested; no new image should be started."""
        return self._after_images.is_set()

    def after_images(self) -> None:
        """Ask to stop when the images in work are finished."""
        self._after_images.set()

    def at_once(self) -> None:
        """Ask to stop at the next step; the images in work are lost."""
        self._after_images.set()
        self._at_once.set()

    def check(self) -> None:
        """Raise Cancelled if any stop was requested."""
        if self.asked:
            raise Cancelled

    def check_step(self) -> None:
        """Raise Cancelled if an immediate stop was requested."""
        if self._at_once.is_set():
            raise Cancelled
