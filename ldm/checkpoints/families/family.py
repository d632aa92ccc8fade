"""A family of checkpoints: a fingerprint of the header, a YAML and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ldm.checkpoints.weights.keys import Shapes
from ldm.jobs.job import Defaults

Pattern = tuple[int | None, ...]


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint, recognised by keys and shapes alone.

    `needs` maps keys to shapes (None fits any length), `lacks` are prefixes of keys that must be
    absent. `prediction` is eps or v. If two families share a fingerprint, `twin` is the name of
    the other one, and a measurement distinguishes them. `task` is the purpose of the family.
    """

    name: str
    title: str
    yaml: str
    prediction: str
    defaults: Defaults
    needs: Mapping[str, Pattern]
    lacks: tuple[str, ...] = ()
    task: str = "txt2img"
    twin: str | None = None

    def matches(self, shapes: Shapes) -> bool:
        """True if the header has this family's fingerprint."""
        return all(_fits(shapes.get(key), wanted) for key, wanted in self.needs.items()) and not (
            self.lacks and any(key.startswith(self.lacks) for key in shapes)
        )


def _fits(shape: tuple[int, ...] | None, wanted: Pattern) -> bool:
    if shape is None or len(shape) != len(wanted):
        return False
    return all(want in (None, length) for length, want in zip(shape, wanted, strict=True))
