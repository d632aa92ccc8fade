"""The keys and shapes that the packaged YAMLs stand for, so that a header is judged without torch.

`python -m ldm.models.inventory` writes the list again from the models themselves; a test compares
the two.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

from ldm.checkpoints.config import Config, read_config, resource
from ldm.checkpoints.families.choice import is_flow
from ldm.checkpoints.weights.keys import T5, Shapes

_FILE = Path(__file__).with_name("inventory.json.gz")


def expected_shapes(config: Config) -> Shapes:
    """Key -> shape of the model of a YAML; of a packaged YAML without torch. Raises ConfigError."""
    listed: Shapes | None = inventory().get(fingerprint(config))
    if listed is None and is_flow(config):
        listed = _whole_or_without_t5(config)
    return shapes_of(config) if listed is None else listed


def _whole_or_without_t5(config: Config) -> Shapes | None:
    """The list of a packaged YAML in which only `t5` is set (see `SD3TextEncoders`)."""
    tree = copy.deepcopy(config.tree)
    stage = tree["model"]["params"].get("cond_stage_config")
    params = stage.get("params") if isinstance(stage, dict) else None
    if not isinstance(params, dict) or set(params) != {"t5"}:
        return None
    del stage["params"]
    listed = inventory().get(fingerprint(replace(config, tree=tree)))
    if listed is None or params["t5"] == "file":
        return listed
    return {key: shape for key, shape in listed.items() if not key.startswith(T5)}


def fingerprint(config: Config) -> str:
    """A hash of the model section of a YAML."""
    text = json.dumps(config.tree.get("model"), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shapes_of(config: Config) -> dict[str, tuple[int, ...]]:
    """Key -> shape, by building the model on the meta device."""
    from ldm.models.registry import build
    from ldm.nn.outline import outline

    with outline():
        model = build(config)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def packaged_yamls() -> list[Path]:
    """The YAMLs of models that come with the package."""
    configs = resource("configs")
    folders = ("stable-diffusion", "sdxl", "sd3", "latent-diffusion")
    yamls = [path for folder in folders for path in configs.glob(f"{folder}/*.yaml")]
    yamls += resource("models").glob("*.yaml")
    return sorted(yamls)


@cache
def inventory() -> dict[str, dict[str, tuple[int, ...]]]:
    """Fingerprint of a YAML -> key -> shape, for the packaged YAMLs."""
    try:
        text = gzip.decompress(_FILE.read_bytes())
    except FileNotFoundError:  # being written for the first time
        return {}
    # A shape of the models of one list is stored once, and so is a key.
    lists = json.loads(text)
    return {
        name: {lists["keys"][key]: tuple(lists["shapes"][shape]) for key, shape in pairs}
        for name, pairs in lists["models"].items()
    }


def encode(models: dict[str, dict[str, tuple[int, ...]]]) -> bytes:
    """The file's bytes for inventories by fingerprint."""
    keys = sorted({key for shapes in models.values() for key in shapes})
    shapes = sorted({shape for model in models.values() for shape in model.values()})
    key_at = {key: index for index, key in enumerate(keys)}
    shape_at = {shape: index for index, shape in enumerate(shapes)}
    content = {
        "keys": keys,
        "shapes": shapes,
        "models": {
            name: [[key_at[key], shape_at[shape]] for key, shape in sorted(model.items())]
            for name, model in sorted(models.items())
        },
    }
    return gzip.compress(json.dumps(content, separators=(",", ":")).encode(), mtime=0)


def write(yamls: Iterable[Path]) -> None:
    """Write the inventory of some YAMLs."""
    configs = [read_config(path) for path in yamls]
    _FILE.write_bytes(encode({fingerprint(config): shapes_of(config) for config in configs}))


if __name__ == "__main__":
    write(packaged_yamls())
