"""When Python looks for garbage: not while torch is imported."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Switch off Python's garbage collector for a while.

    An import makes hundreds of thousands of objects that stay; going through them again and again
    is a sixth of the time that torch takes. Those of the first import of torch are never looked at
    again; what is there at later ones may be a model, whose memory must come free.
    """
    enabled, first = gc.isenabled(), "torch" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if first and "torch" in sys.modules:
            gc.freeze()
        if enabled:
            gc.enable()
