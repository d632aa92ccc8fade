"""The components of a model that may come from separate files.

A model is assembled from a checkpoint and such files. A given file replaces the checkpoint's own
component, which may then be absent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ldm.checkpoints.weights.keys import CLIP_G, CLIP_L, PARTS, T5
from ldm.checkpoints.weights.vae_keys import FIRST_STAGE
from ldm.jobs.flow import WITHOUT_T5
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
TEXT_ENCODERS = (
    Component(CLIP_L, "--clip-l"),
    Component(CLIP_G, "--clip-g"),
    Component(T5, "--t5"),
)
COMPONENTS = {component.prefix: component for component in (AUTOENCODER, DEPTH, *TEXT_ENCODERS)}

# Where the YAML of a model of SD3 says whether it has a T5.
T5_SETTING = "model.params.cond_stage_config.params.t5"

Files = Mapping[str, Path]  # prefix of a component -> the file given for it


def files_of(job: Job) -> Files:
    """The files that a job gives for components."""
    given = {
        AUTOENCODER.prefix: job.vae,
        DEPTH.prefix: job.depth_model,
        CLIP_L: job.clip_l,
        CLIP_G: job.clip_g,
        T5: None if job.t5 in WITHOUT_T5 else job.t5,
    }
    return {prefix: Path(name) for prefix, name in given.items() if name is not None}


def settings_of(job: Job) -> tuple[str, ...]:
    """What a job changes in the YAML: its overrides, and whether there is a T5."""
    if job.t5 is None:
        return tuple(job.overrides)
    kind = job.t5 if job.t5 in WITHOUT_T5 else "file"
    return (*job.overrides, f"{T5_SETTING}={kind}")


def without(keys: Iterable[str], prefixes: Iterable[str]) -> list[str]:
    """The keys that a checkpoint has to provide itself: those with none of the prefixes."""
    omitted = tuple(prefixes)
    return [key for key in keys if not key.startswith(omitted)]


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
