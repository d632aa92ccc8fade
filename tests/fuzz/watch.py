"""A watch on code that reads what strangers wrote: what it may raise, take and touch.

Inside `watched` an audit hook notes every start of code, of a program or of a connection and every
change of a file outside one folder and the cache; the memory and the time that the reader takes
are bounded.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import threading
import time
import typing
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ldm.errors import UsageError

# What one hostile input may cost at most; seconds are of the processor, whatever runs beside.
MOST_MEBIBYTES = 256
MOST_SECONDS = 30
# Asking for more than this gives a MemoryError at once, so that no fault can take the machine.
_CEILING_MEBIBYTES = 4096

_CODE = ("exec", "compile", "marshal.loads", "code.__new__")
_NEVER = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.startfile",
    "subprocess.Popen", "pty.spawn", "pickle.find_class", "ctypes.", "socket.", "urllib.",
    "ftplib.", "http.client", "webbrowser.", "shutil.", "os.kill",
)  # fmt: skip
_CHANGES = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "os.chown", "os.utime", "tempfile.",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Modules that a reader may load the first time it needs them.
_OURS = frozenset(
    {
        "attr",
        "attrs",
        "ldm",
        "PIL",
        "numpy",
        "yaml",
        "omegaconf",
        "antlr4",
        "ftfy",
        "wcwidth",
        "regex",
        "tokenizers",
    }
) | frozenset(sys.stdlib_module_names)

# How often each test watched a reader.
cases: Counter[str] = Counter()


class Slow(BaseException):
    """The reader took too long; no reader may catch it."""


class Watch:
    """What happened while it was on."""

    def __init__(self) -> None:
        self.on = False
        self.folder = ""
        self.seen: list[str] = []
        self.importing = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The audit hook; it must not raise, since a reader could catch that."""
        if not self.on:
            return
        if event == "import":
            self.importing = True
            if str(arguments[0]).partition(".")[0] not in _OURS:
                self.seen.append(f"import of {arguments[0]}")
        elif event.startswith(_NEVER) or (event in _CODE and not self._is_sound()):
            self.seen.append(f"{event}{arguments!r:.80}")
        elif event == "open":
            path, mode, flags = arguments
            writes = re.search(r"[wax+]", mode) if isinstance(mode, str) else flags & _WRITING
            if writes and path != os.devnull:
                self._outside(event, path)
        elif event.startswith(_CHANGES):
            self._outside(event, arguments[0])

    def _is_sound(self) -> bool:
        """Whether code starts because a module is loaded, or an annotation of ours is looked up."""
        return self.importing or sys._getframe(2).f_code.co_filename == typing.__file__

    def _outside(self, event: str, path: Any) -> None:
        if isinstance(path, int):
            return  # a file that is open already
        where = os.path.abspath(os.fsdecode(path))
        allowed = (self.folder, os.environ["XDG_CACHE_HOME"])  # hashes are cached
        inside = any(f"{where}{os.sep}".startswith(folder + os.sep) for folder in allowed)
        if not inside and "__pycache__" not in where:
            self.seen.append(f"{event} of {where}")


_WATCH = Watch()
sys.addaudithook(_WATCH)


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Fail where the block takes too much or does what it must not; its UsageErrors are expected.

    Files may change in `folder` and in the user's cache alone.
    """
    cases[os.environ.get("PYTEST_CURRENT_TEST", "")] += 1
    _WATCH.seen, _WATCH.importing = [], False
    _WATCH.folder = os.path.abspath(folder)
    before = _reset_peak()
    start = time.process_time()
    with _alarm(), _ceiling():
        _WATCH.on = True
        try:
            yield
        except UsageError as error:
            text = str(error)
            assert "\n" not in text, f"not one line: {text!r}"
            assert len(text) < 3000, f"no line for people: {text[:200]!r}..."
        finally:
            _WATCH.on = False
    seconds = time.process_time() - start
    grown = (_peak() - before) / 1024
    assert not _WATCH.seen, _WATCH.seen
    assert grown < MOST_MEBIBYTES, f"took {grown:.0f} MiB"
    assert seconds < MOST_SECONDS, f"took {seconds:.1f} s"


def _status(name: str) -> int | None:
    """A number of KiB that Linux tells of this process."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    match = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) if match else None


def _reset_peak() -> int:
    """Forget the peak of memory, where the system can; the KiB in use now."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return _peak()
    return _status("VmRSS") or _peak()


def _peak() -> int:
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextmanager
def _alarm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise Slow(f"more than {MOST_SECONDS} s")

    previous = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


@contextmanager
def _ceiling() -> Iterator[None]:
    used = _status("VmSize")
    if used is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = (used + _CEILING_MEBIBYTES * 1024) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
