"""The index of a file of torch before 1.6: five pickles, then the storages one after another.

Source: torch/serialization.py, _legacy_save. The pickles are a magic number, the version of the
format, facts of the machine, the value, and the storages' keys. A storage is its count (int64) and
its numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from ldm.checkpoints.weights.pickled import Storage, Strided, read_pickles

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first pickle
_VERSION = 1001


@dataclass(frozen=True)
class Index:
    """The value of a file, the names of dropped objects, the storages' keys and their start."""

    value: Any
    dropped: set[str]
    keys: list[str]
    start: int

    def places(
        self, file: IO[bytes], width: Callable[[Storage], int]
    ) -> dict[Storage, tuple[int, int]]:
        """The offset and size in bytes of each storage; `width` is the size of its numbers.

        Raises LookupError for a type of unknown width.
        """
        storages = _storages_in(self.value)
        places: dict[Storage, tuple[int, int]] = {}
        at = self.start
        for key in self.keys:
            if key not in storages:
                break  # of a dropped object: what follows cannot be located
            file.seek(at)
            count = int.from_bytes(file.read(8), "little")
            length = count * width(storages[key])
            places[storages[key]] = (at + 8, length)
            at += 8 + length
        return places


def read_index(start: bytes) -> Index:
    """Read the pickles at the start of a file; raises ValueError if they are not torch's."""
    (_, version, machine, value, keys), dropped, end = read_pickles(start, 5)
    if version != _VERSION or not isinstance(machine, dict):
        raise ValueError("an unknown version of torch's old format")
    if machine.get("little_endian") is not True:
        raise ValueError("it was written on a big-endian machine; convert it")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("malformed pickle (keys that are no text)")
    return Index(value, dropped, keys, end)


def _storages_in(value: Any) -> dict[str, Storage]:
    """All storages in nested dicts, lists and tuples, by key."""
    found: dict[str, Storage] = {}
    seen: set[int] = set()
    queue = [value]
    while queue:
        item = queue.pop()
        if isinstance(item, Strided):
            found[item.storage.key] = item.storage
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            queue.extend(item.values() if isinstance(item, dict) else item)
    return found
