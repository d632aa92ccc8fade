"""Read files that will be needed soon into memory in the background."""

from __future__ import annotations

import os
import threading
from pathlib import Path

# Of what is asked for at once, Linux reads no more than a device takes in one piece.
_WINDOW = 1 << 19


def read_ahead(path: Path) -> threading.Thread | None:
    """Let the system read a file into its cache, in the background; None where it cannot.

    Cached files cost nothing. Missing and unreadable files are ignored here.
    """
    if not hasattr(os, "posix_fadvise"):
        return None
    thread = threading.Thread(target=_advise, args=(path,), daemon=True)
    thread.start()
    return thread


def _advise(path: Path) -> None:
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        for start in range(0, os.fstat(file).st_size, _WINDOW):
            os.posix_fadvise(file, start, _WINDOW, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(file)
