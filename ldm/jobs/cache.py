"""The folder for what can be computed again, kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder `ldm` in the user's cache folder: $XDG_CACHE_HOME, else ~/.cache.

    It may not exist yet.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ldm"
