"""Memory of CPU tensors: reserved in advance, and retained or returned after use."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# From glibc's malloc.h: options, the default limit of mapped blocks, and the largest possible
# threshold for mapping them.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_MAPPED = 65536
_LARGE = 32 << 20
# The size reserved at a time, small enough to stop soon.
_PIECE = 128 << 20
# Above this many pixels, fragmentation costs more memory than retaining it saves time.
_KEPT_PIXELS = 768**2
# The C library, once `keep_freed` has configured it for the whole process.
_keeping: list[ctypes.CDLL] = []


def keep_freed() -> bool:
    """Retain the memory of freed tensors in the process for new ones.

    glibc returns large blocks at once, and the kernel clears every page of a new block, again for
    each feature map. With another C library, nothing happens and the result is false.
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
    """In this context, have the kernel reserve `count` bytes for later tensors, in a thread.

    Clearing the pages takes a second for 4 GB: on a core that is idle while torch is imported,
    instead of on both cores later. The memory is retained (`keep_freed`).
    """
    if count < _PIECE or not keep_freed():
        yield
        return
    library = _keeping[0]
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    start = library.malloc(count)
    if start is None:  # a later allocation will report it
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
    """Return large blocks to the system while an autoencoder processes an image this large."""
    libraries = _keeping if pixels > _KEPT_PIXELS else []
    for library in libraries:
        library.mallopt(_M_MMAP_MAX, _MAPPED)
        library.malloc_trim(0)
    try:
        yield
    finally:
        for library in libraries:
            library.mallopt(_M_MMAP_MAX, 0)
