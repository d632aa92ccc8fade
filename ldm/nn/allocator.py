"""Memory of the CPU's tensors: found before they come, and kept or given back when they go."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Of glibc's malloc.h: options, how many pieces it maps unless told otherwise, and the largest size
# below which it can be told not to.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_MAPPED = 65536
_LARGE = 32 << 20
# How much is found at a time: it ends soon when nobody waits for more.
_PIECE = 128 << 20
# Images of more pixels than this leave gaps between their features that cost more than they save.
_KEPT_PIXELS = 768**2
# The C library, once `keep_freed` has changed its ways, as it does for the whole process.
_keeping: list[ctypes.CDLL] = []


def keep_freed() -> bool:
    """Let memory that tensors have left stay with the process, for those to come.

    glibc gives large pieces back at once, and the kernel clears every page of a new one, for each
    feature map again. Where the C library is another nothing is done, and the result is false.
    """
    try:
        library = ctypes.CDLL(None)
        mallopt = library.mallopt
        _ = library.malloc_trim
    except (OSError, AttributeError, TypeError):
        return False
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
    mallopt(_M_TRIM_THRESHOLD, -1)
    _keeping[:] = [library]
    return True


@contextmanager
def found_ahead(count: int) -> Iterator[None]:
    """While this lasts, let the kernel find memory for `count` bytes of tensors to come.

    Clearing its pages takes a second for 4 GB: time of a core that has nothing else to do while
    torch is imported, instead of time of both cores later. What is found is kept (`keep_freed`).
    """
    if count < _PIECE or not keep_freed():
        yield
        return
    library = _keeping[0]
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    start = library.malloc(count)
    if start is None:  # whoever needs it will say so
        yield
        return
    enough = threading.Event()
    thread = threading.Thread(target=_find, args=(start, count, enough), daemon=True)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()
        library.free(start)


def _find(start: int, count: int, enough: threading.Event) -> None:
    for place in range(start, start + count, _PIECE):
        if enough.is_set():
            return
        ctypes.memset(place, 0, min(_PIECE, start + count - place))


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
