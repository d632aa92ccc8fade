"""YAML in the originals' dialect, read into plain containers.

A `Config` keeps the name of its source so that every later complaint can say where the fault is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ldm.errors import ConfigError


@dataclass(frozen=True)
class Config:
    """A parsed YAML; `source` is the file's name (or where the text came from) for messages."""

    source: str
    tree: dict[str, Any]


def read_config(path: Path | str) -> Config:
    """Read a YAML file; raises ConfigError when it is missing or cannot be parsed."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such YAML file; check --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML text ({_one_line(error)})") from None
    return parse_config(text, str(path))


def parse_config(text: str, source: str) -> Config:
    """Parse YAML text (OmegaConf interpolations are resolved); raises ConfigError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        node = OmegaConf.create(text)
        tree = OmegaConf.to_container(node, resolve=True)
    except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML: {_one_line(error)}") from None
    except AssertionError:  # how OmegaConf says that the document is a number or a truth value
        raise ConfigError(f"{source}: a YAML of sections is wanted, found a single value") from None
    return Config(source, _mapping(tree, source))


def override(config: Config, settings: Sequence[str]) -> Config:
    """Apply dotted `key=value` settings; values are read as YAML, later ones win.

    A path that the model does not know is found by the registry, which knows every parameter.
    """
    if not settings:
        return config
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    tree = config.tree
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip() or "" in key.strip().split("."):
            raise ConfigError(f"--set {setting!r}: write it as dotted.key=value")
        try:
            setting_node = OmegaConf.from_dotlist([f"{key.strip()}={value}"])
            node = OmegaConf.merge(OmegaConf.create(tree), setting_node)
            tree = _mapping(OmegaConf.to_container(node, resolve=True), config.source)
        except (OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
            reason = _one_line(error)
            raise ConfigError(f"--set {setting!r} does not fit {config.source}: {reason}") from None
    return Config(config.source, tree)


def resource(kind: Literal["configs", "models"]) -> Path:
    """Folder of packaged files: inside the installed package, else at the source tree's top."""
    package = Path(__file__).resolve().parent
    inside = package / kind
    return inside if inside.is_dir() else package.parent / kind


def _mapping(tree: object, source: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: a YAML of sections is wanted, found {type(tree).__name__}")
    return {str(key): value for key, value in tree.items()}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
