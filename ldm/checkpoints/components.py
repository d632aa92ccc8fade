"""The components of a model that may come from separate files.

A model is assembled from a checkpoint and such files. A given file replaces the checkpoint's own
component, which may then be absent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ldm.checkpoints.weights.keys import PARTS
from ldm.checkpoints.weights.vae_keys import FIRST_STAGE
from ldm.jobs.job import Job

DEPTH_MODEL = "depth_model."


@dataclass(frozen=True)
class Component:
    """A part of a model: the prefix of its keys in a whole checkpoint, and the flag for a file."""

    prefix: str
    flag: str

    @property
    def name(self) -> str:
        """Its name in messages."""
        return PARTS[self.prefix]


AUTOENCODER = Component(FIRST_STAGE, "--vae")
DEPTH = Component(DEPTH_MODEL, "--depth-model")
COMPONENTS = {component.prefix: component for component in (AUTOENCODER, DEPTH)}

Files = Mapping[str, Path]  # prefix of a component -> the file given for it


def files_of(job: Job) -> Files:
    """The files that a job gives for components."""
    given = {AUTOENCODER.prefix: job.vae, DEPTH.prefix: job.depth_model}
    return {prefix: Path(name) for prefix, name in given.items() if name is not None}


def without(keys: Iterable[str], files: Files) -> list[str]:
    """The keys that a checkpoint has to provide itself."""
    return [key for key in keys if not key.startswith(tuple(files))]


def lacking(keys: Collection[str], expected: Iterable[str]) -> str | None:
    """Describe the first part that a checkpoint lacks entirely, and its flag; None if complete."""
    wanted = {prefix for prefix in PARTS for key in expected if key.startswith(prefix)}
    for prefix, name in PARTS.items():
        if prefix in wanted and not any(key.startswith(prefix) for key in keys):
            article = "" if name.endswith("s") else "an " if name[0] in "aeiou" else "a "
            component = COMPONENTS.get(prefix)
            advice = (
                f"give a file with {component.flag}"
                if component is not None
                else f"use a checkpoint that has {article}{name}"
            )
            return f"contains no {name}; {advice}"
    return None
