"""YAML in the originals' dialect, read into plain containers.

A `Config` carries the name of its source so that every later error can name it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ldm.checkpoints.sizes import check_sizes
from ldm.errors import ConfigError

# Limits of a YAML. Those of models have 3,000 characters, 100 values and no references.
LONGEST = 1_000_000  # characters of the text
MOST_VALUES = 100_000  # including repetitions by `*name`
DEEPEST = 100  # levels of nesting; the C parser has no limit of its own, and would crash
MOST_REFERENCES = 16  # `${name}`: n of them can make a value 3 ** (n / 3) times as large


@dataclass(frozen=True)
class Config:
    """A parsed YAML; `source` is the file's name (or where the text came from) for messages.

    Raises ConfigError for sizes that no model has (see `ldm.checkpoints.sizes`).
    """

    source: str
    tree: dict[str, Any]

    def __post_init__(self) -> None:
        check_sizes(self.tree, self.source)


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
        _check_cost(text, source)
        node = OmegaConf.create(text)
        tree = OmegaConf.to_container(node, resolve=True)
    except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML: {_one_line(error)}") from None
    except AssertionError:  # OmegaConf's reaction to a document that is a number or a boolean
        raise ConfigError(f"{source}: must be a YAML of sections, not a single value") from None
    return Config(source, _mapping(tree, source))


def override(config: Config, settings: Sequence[str]) -> Config:
    """Apply dotted `key=value` settings; values are parsed as YAML, and later ones win.

    The registry, which knows every parameter, rejects unknown paths later.
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
    """The folder of packaged files: in the installed package, else at the source tree's top."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "bundled" / kind
    return inside if inside.is_dir() else package.parent / kind


def _check_cost(text: str, source: str) -> None:
    """Raise ConfigError for a text that would expand to something enormous."""
    if len(text) > LONGEST:
        raise ConfigError(f"{source}: has more than {LONGEST} characters, unlike any model's YAML")
    _check_depth(text, source)
    values, references = 0, text.count("${")
    if "*" in text and "&" in text:  # without both, no value repeats
        values, references = _Measure(source).measure(text)
    if values > MOST_VALUES:
        raise ConfigError(f"{source}: its aliases (*name) expand to more than {MOST_VALUES} values")
    if references > MOST_REFERENCES:
        raise ConfigError(
            f"{source}: has more than {MOST_REFERENCES} references (${{name}}); write out values"
        )


def _check_depth(text: str, source: str) -> None:
    """Raise ConfigError for values nested deeper than in any model's YAML."""
    opened = text.count("[") + text.count("{")
    lines = (len(line) - len(line.lstrip()) + line.count("- ") for line in text.splitlines())
    if opened + text.count("?") + max(lines, default=0) < DEEPEST:
        return  # it cannot be that deep
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ConfigError(f"{source}: values are nested deeper than {DEEPEST} times")


class _Measure:
    """Counts the values and references that a YAML expands to, without expanding it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.known: dict[int, tuple[int, int]] = {}
        self.open: set[int] = set()

    def measure(self, text: str) -> tuple[int, int]:
        """Values and references of a text; raises YAMLError, ConfigError and RecursionError."""
        import yaml

        return self._of(yaml.compose(text, Loader=yaml.SafeLoader))

    def _of(self, node: Any) -> tuple[int, int]:
        if isinstance(getattr(node, "value", None), str):
            return 1, node.value.count("${")
        if id(node) in self.open:
            raise ConfigError(f"{self.source}: an alias (*name) contains itself")
        if id(node) not in self.known:
            self.open.add(id(node))
            parts = [] if node is None else node.value
            flat = [
                part for entry in parts for part in (entry if type(entry) is tuple else (entry,))
            ]
            counts = [self._of(part) for part in flat]
            self.open.remove(id(node))
            self.known[id(node)] = (1 + sum(c[0] for c in counts), sum(c[1] for c in counts))
        return self.known[id(node)]


def _mapping(tree: object, source: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: must be a YAML of sections, not {type(tree).__name__}")
    return {str(key): value for key, value in tree.items()}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
