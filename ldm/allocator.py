"""What becomes of the memory that tensors of the CPU leave: kept by the process, or given back."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Of glibc's malloc.h: options, how many pieces it maps unless told otherwise, and the largest size
# below which it can be told not to.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_MAPPED = 65536
_LARGE = 32 << 20
# Pictures of more pixels than this leave gaps between their features that cost more than they save.
_KEPT_PIXELS = 768**2
# The C library, once `keep_freed` has changed its ways, as it does for the whole process.
_keeping: list[ctypes.CDLL] = []


def keep_freed() -> None:
    """Let memory that tensors have left stay with the process, for those to come.

    glibc gives large pieces back at once, and the kernel clears every page of a new one, for each
    feature map anew. Nothing is done where the C library is another.
    """
    try:
        library = ctypes.CDLL(None)
        mallopt = library.mallopt
        _ = library.malloc_trim
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
    mallopt(_M_TRIM_THRESHOLD, -1)
    _keeping[:] = [library]


@contextmanager
def given_back(pixels: int) -> Iterator[None]:
    """While an autoencoder sees so many pixels: where they are many, nothing large is kept."""
    libraries = _keeping if pixels > _KEPT_PIXELS else []
    for library in libraries:
        library.mallopt(_M_MMAP_MAX, _MAPPED)
        library.malloc_trim(0)
    try:
        yield
    finally:
        for library in libraries:
            library.mallopt(_M_MMAP_MAX, 0)
