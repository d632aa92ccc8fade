"""Locate checkpoints and YAMLs, and the models that can do a task; without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from ldm.checkpoints.config import resource
from ldm.checkpoints.families import yaml_beside
from ldm.checkpoints.families.choice import Choice, choose
from ldm.checkpoints.folders import SUFFIXES as ENDINGS
from ldm.checkpoints.folders import WHOLE, Place, files_of, model_files, places
from ldm.checkpoints.weights.header import Header, read_header
from ldm.errors import CheckpointError, ConfigError, UsageError
from ldm.jobs.legacy import SCRIPT_CHECKPOINTS
from ldm.jobs.options import nearest

# The bundled models for each task, best first.
BUNDLED: Mapping[str, tuple[str, ...]] = {
    "txt2img": ("emoji-128",),
    "img2img": ("emoji-128",),
    "inpaint": ("emoji-128-inpaint", "emoji-128"),
    "depth2img": ("emoji-128-depth",),
    "upscale": ("emoji-128-x4",),
}
# The tasks of the model families that can do a task.
FITTING: Mapping[str, tuple[str, ...]] = {
    "img2img": ("txt2img",),
    "inpaint": ("inpaint", "txt2img"),
}
Stamp = tuple[Path, int, int, int]
SUFFIXES = ("", *ENDINGS)
_SEARCHED = "./models or the folders of $LDM_MODELS and --models-dir"
CONFIG_FOLDERS = ("stable-diffusion/", "sdxl/", "sd3/", "latent-diffusion/")


def find_checkpoint(
    name: str | None, task: str = "txt2img", *, script: bool = False
) -> tuple[Path, tuple[str, ...]]:
    """Find a checkpoint by path or name, or a bundled model if `name` is None; and notes.

    Names are searched in all places of models (see `ldm.checkpoints.folders`), with subfolders.
    Raises CheckpointError listing the available models.
    """
    if name is None:
        usual = Path(SCRIPT_CHECKPOINTS.get(task, SCRIPT_CHECKPOINTS["txt2img"]))
        if script and usual.is_file():
            return usual, ()
        path = _bundled(task)
        note = f"no --model given: using the bundled model {path.stem}, which is small"
        if script:
            note = f"no --ckpt, and no {usual}: using the bundled model {path.stem}"
        return path, (note,)
    path = Path(name).expanduser()
    for suffix in SUFFIXES if path.name else ():
        if (found := path.with_name(path.name + suffix)).is_file():
            return found, ()
    if path.is_dir():
        raise CheckpointError(f"--model {name} is a folder; name the checkpoint file in it")
    if not path.is_absolute():
        for place in places():
            matches = _matches(place, name)
            if len(matches) > 1:
                listed = ", ".join(str(match) for match in matches[:4])
                raise CheckpointError(f"--model {name} fits several files: {listed}")
            if matches:
                return matches[0], ()
    raise CheckpointError(_no_model(name))


def find_config(name: str | None) -> tuple[Path | None, tuple[str, ...]]:
    """Find a YAML by path, else among the packaged ones; and notes.

    The Intel variants of the v2 YAMLs differ only in precision, which is a flag here.
    """
    if name is None or Path(name).expanduser().is_file():
        return (Path(name).expanduser() if name else None), ()
    packaged = resource("configs")
    wanted = name.removeprefix("./").removeprefix("configs/")
    inside = [f"{folder}{wanted}" for folder in ("", *CONFIG_FOLDERS)]
    for plain in (name for path in inside for name in (path, f"{path}.yaml")):
        stem = plain.replace("/intel/", "/").replace("-fp32.", ".").replace("-bf16.", ".")
        for candidate in (plain, stem):
            if (packaged / candidate).is_file():
                return packaged / candidate, (f"{name}: using the packaged configs/{candidate}",)
    found = [path for folder in CONFIG_FOLDERS for path in packaged.glob(f"{folder}*.yaml")]
    known = [path.name for path in sorted(found)]
    hint = nearest(Path(name).name, known)
    raise ConfigError(f"--config {name}: no such file{hint} (packaged: {', '.join(known)})")


def chosen(
    checkpoint: Path, config: Path | None, overrides: tuple[str, ...]
) -> tuple[Header, Choice]:
    """The header of a checkpoint, and its YAML and family; cached for many jobs.

    Raises CheckpointError and ConfigError.
    """
    yaml = yaml_beside(checkpoint) if config is None else config
    stamps = _stamp(checkpoint), None if yaml is None else _stamp(yaml)
    return _choice_of(checkpoint, config, overrides, stamps)


@lru_cache(maxsize=8)
def _choice_of(
    checkpoint: Path,
    config: Path | None,
    overrides: tuple[str, ...],
    stamps: tuple[Stamp, Stamp | None],
) -> tuple[Header, Choice]:
    header = _header(checkpoint, stamps[0])
    return header, choose(header, config, overrides)


@lru_cache(maxsize=8)
def _header(path: Path, stamp: Stamp) -> Header:
    return read_header(path)


def header_of(path: Path) -> Header:
    """The header of a checkpoint, cached until the file changes."""
    return _header(path, _stamp(path))


def _stamp(path: Path) -> Stamp:
    """A value that changes with the file, or when a name refers to another file."""
    try:
        status = path.stat()
    except OSError:  # reading the file will report it
        return path, 0, 0, 0
    return path.resolve(), status.st_ino, status.st_size, status.st_mtime_ns


def _bundled(task: str) -> Path:
    """The first bundled model for a task that exists."""
    paths = [resource("models") / f"{name}.safetensors" for name in BUNDLED.get(task, ())]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise CheckpointError(
            f"--model is missing: no bundled model can do {task}{able_models(task)}; "
            "the README says where checkpoints are published"
        )
    return path


def able_models(task: str) -> str:
    """The end of a message: the available models that can do a task."""
    names = []
    for name, path in _named():
        try:
            family = choose(read_header(path)).family
        except UsageError:
            continue
        if family.task in FITTING.get(task, (task,)):
            names.append(name)
    if not names:
        return f"; none under {_SEARCHED} can"
    return f"; these can: {', '.join(names[:5])}"


def _matches(place: Place, name: str) -> list[Path]:
    """The checkpoints in a place whose path ends with `name`; .safetensors before .ckpt.

    Files that by their folder are no whole models count only if no others fit.
    """
    files = files_of(place)
    wholes = [file.path for file in files if file.kind in ("", WHOLE)]
    others = [file.path for file in files if file.kind not in ("", WHOLE)]
    return _ending(wholes, place.folder, name) or _ending(others, place.folder, name)


def _ending(paths: Sequence[Path], folder: Path, name: str) -> list[Path]:
    *parents, last = Path(name).parts
    for suffix in SUFFIXES:
        tail = (*parents, f"{last}{suffix}")
        matches = [path for path in paths if path.parts[-len(tail) :] == tail]
        direct = [path for path in matches if path == folder.joinpath(*tail)]
        if matches:
            return direct or matches
    return []


def _named() -> list[tuple[str, Path]]:
    """All checkpoints by their names for --model, with folders, because all files of latent
    diffusion are called model.ckpt or last.ckpt."""
    return [(file.name, file.path) for file in model_files() if file.kind in ("", WHOLE)]


def _no_model(name: str) -> str:
    named = _named()
    available = sorted({name for name, _ in named})
    hint = nearest(Path(name).name, [path.stem for _, path in named])
    known = f"; available: {', '.join(available[:10])}" if available else ""
    return f"--model {name}: no such file, nor under {_SEARCHED}{hint}{known}"
