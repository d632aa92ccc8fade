"""Stopping a run by a value: whoever starts a run may ask it to stop, from any thread."""

from __future__ import annotations

import threading


class Cancelled(Exception):
    """A run was asked to stop, and has."""


class Cancel:
    """A request to stop a run: when the images in work are finished, or at the next step.

    A run calls `check` when its images in work are finished, and `check_step` within them.
    """

    def __init__(self) -> None:
        self._after_images = threading.Event()
        self._at_once = threading.Event()

    @property
    def asked(self) -> bool:
        """Whether to stop: nothing more is to be begun."""
        return self._after_images.is_set()

    def after_images(self) -> None:
        """Ask to stop when the images in work are finished."""
        self._after_images.set()

    def at_once(self) -> None:
        """Ask to stop at the next step; the images in work are lost."""
        self._after_images.set()
        self._at_once.set()

    def check(self) -> None:
        """Raise Cancelled if a stop was asked for, of either kind."""
        if self.asked:
            raise Cancelled

    def check_step(self) -> None:
        """Raise Cancelled if a stop at once was asked for."""
        if self._at_once.is_set():
            raise Cancelled
