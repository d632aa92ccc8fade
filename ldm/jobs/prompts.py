"""Adapters that a prompt names."""

from __future__ import annotations

import re

from ldm.errors import JobError

_NETWORK = re.compile(r"<(?P<kind>hypernet)\s*:[^>]*>", re.IGNORECASE)
_EMBEDDING = re.compile(r"\bembedding:[^\s,()\[\]]+", re.IGNORECASE)
_TITLES = {"hypernet": "a hypernetwork"}


def check_adapters(text: str, syntax: str) -> None:
    """Raise JobError for a prompt that names an adapter, which would be read as plain words."""
    if syntax == "plain":
        return
    network, embedding = _NETWORK.search(text), _EMBEDDING.search(text)
    if network is not None:
        found, title = network[0], _TITLES[network["kind"].lower()]
    elif embedding is not None:
        found, title = embedding[0], "a textual inversion embedding"
    else:
        return
    raise JobError(
        f"the prompt names {title}, {found!r}, which ldm cannot load yet; "
        "remove it, or use --prompt-syntax plain to keep it as words"
    )
