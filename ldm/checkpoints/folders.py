"""The folders that models lie in: ours, and those of ComfyUI and AUTOMATIC1111.

A root is a folder of models, the folder of such a program, or ComfyUI's extra_model_paths.yaml. In
the layouts of these programs, the name of a subfolder says what its files are.
Sources: ComfyUI, folder_paths.py and utils/extra_config.py; AUTOMATIC1111/stable-diffusion-webui,
modules/paths.py and modules/shared_cmd_options.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.checkpoints.config import resource
from ldm.errors import ConfigError, UsageError

SUFFIXES = (".safetensors", ".ckpt")
WHOLE = "checkpoint"
# Lower-case name of a subfolder -> what its files are.
KINDS = {
    **dict.fromkeys(("checkpoints", "stable-diffusion"), WHOLE),
    **dict.fromkeys(("diffusion_models", "unet"), "network"),
    **dict.fromkeys(("text_encoders", "text_encoder", "clip"), "text encoder"),
    "vae": "autoencoder",
    **dict.fromkeys(("vae_approx", "vae-approx"), "preview decoder"),
    **dict.fromkeys(("loras", "lora", "lycoris"), "LoRA"),
    "embeddings": "embedding",
    "hypernetworks": "hypernetwork",
    "controlnet": "ControlNet",
    **dict.fromkeys(("upscale_models", "esrgan", "realesrgan", "swinir", "dat"), "upscaler"),
    **dict.fromkeys(("gfpgan", "codeformer"), "face restorer"),
    **dict.fromkeys(("clip_vision", "ipadapter", "style_models", "gligen"), "image adapter"),
}
_COMFY_PATHS = "extra_model_paths.yaml"
_further: ContextVar[tuple[str, ...]] = ContextVar("further model folders", default=())


@dataclass(frozen=True)
class Place:
    """A folder, with subfolders; `kind` says what its files are, "" if each file has to."""

    folder: Path
    kind: str = ""


@dataclass(frozen=True)
class ModelFile:
    """A file in a place: its path, and what it is by its folder ("" if that does not say)."""

    path: Path
    place: Place
    kind: str

    @property
    def name(self) -> str:
        """Its name for --model: the path in its place, without the ending."""
        return self.path.relative_to(self.place.folder).with_suffix("").as_posix()


@contextmanager
def searching(folders: Sequence[str]) -> Iterator[None]:
    """Search further roots (of --models-dir) meanwhile; raises UsageError for a missing one."""
    roots = tuple(part for entry in folders for part in entry.split(os.pathsep) if part)
    for root in roots:
        if not Path(root).expanduser().exists():
            raise UsageError(f"--models-dir {root}: no such folder or YAML file")
    token = _further.set(roots)
    try:
        yield
    finally:
        _further.reset(token)


def places() -> list[Place]:
    """The places to search for models, in order; raises ConfigError for a broken YAML.

    They are ./models, those of --models-dir and of $LDM_MODELS, and the packaged models.
    """
    named = [part for part in os.environ.get("LDM_MODELS", "").split(os.pathsep) if part]
    found = [Place(Path("models"))]
    for root in (*_further.get(), *named):
        found += places_of(Path(root).expanduser())
    return list(dict.fromkeys([*found, Place(resource("models"))]))


def places_of(root: Path) -> list[Place]:
    """The places of a root; raises ConfigError for a YAML that cannot be used."""
    if root.suffix in (".yaml", ".yml"):
        return _of_comfy_yaml(root)
    found = []
    if _has_layout(root / "models"):  # the folder of such a program
        found.append(Place(root / "models"))
        if (root / "embeddings").is_dir():
            found.append(Place(root / "embeddings", KINDS["embeddings"]))
    if (root / _COMFY_PATHS).is_file():
        found += _of_comfy_yaml(root / _COMFY_PATHS)
    return found or [Place(root)]


def model_files(suffixes: Sequence[str] = SUFFIXES) -> list[ModelFile]:
    """The files of all places, each file once, by place and path."""
    found: dict[Path, ModelFile] = {}
    for place in places():
        for file in files_of(place, suffixes):
            found.setdefault(file.path.absolute(), file)
    return list(found.values())


def files_of(place: Place, suffixes: Sequence[str] = SUFFIXES) -> list[ModelFile]:
    """The files of a place, sorted; links to folders are followed, each folder once."""
    found, seen = [], set()
    for folder, subfolders, names in os.walk(place.folder, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        found += [path for name in names if (path := Path(folder, name)).suffix in suffixes]
    return [ModelFile(path, place, _kind(path, place)) for path in sorted(found)]


def _kind(path: Path, place: Place) -> str:
    top, *rest = path.relative_to(place.folder).parts
    return place.kind or (KINDS.get(top.lower(), "") if rest else "")


def _has_layout(folder: Path) -> bool:
    try:
        return any(entry.name.lower() in KINDS and entry.is_dir() for entry in folder.iterdir())
    except OSError:
        return False


def _of_comfy_yaml(path: Path) -> list[Place]:
    """The places that ComfyUI's YAML names, those of sections with `is_default` first."""
    sections = _sections(path)
    ordered = sorted(sections.values(), key=lambda section: not section.get("is_default"))
    return [place for section in ordered for place in _of_section(section, path)]


def _sections(path: Path) -> dict[str, dict[str, Any]]:
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read as YAML ({reason})") from None
    sections = {} if tree is None else tree
    if not isinstance(sections, dict) or not all(
        isinstance(section, dict | None) for section in sections.values()
    ):
        raise ConfigError(
            f"{path}: is not ComfyUI's {_COMFY_PATHS}: it must have sections of folders by kind"
        )
    return {str(name): section for name, section in sections.items() if section is not None}


def _of_section(section: dict[str, Any], source: Path) -> list[Place]:
    base = Path(os.path.expandvars(str(section.get("base_path") or ""))).expanduser()
    found = []
    for name, value in section.items():
        if name in ("base_path", "is_default") or value is None:
            continue
        if not isinstance(value, str):
            raise ConfigError(f"{source}: {name} must be a folder, or several, one a line")
        for line in filter(None, map(str.strip, value.splitlines())):
            folder = source.parent / base / Path(os.path.expandvars(line)).expanduser()
            found.append(Place(folder, KINDS.get(str(name).lower(), str(name))))
    return found
