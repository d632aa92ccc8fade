"""What a prompt asks for that is no text: adapters, and marks of other programs' syntaxes."""

from __future__ import annotations

import re

from ldm.errors import JobError

_NETWORK = re.compile(r"<(?P<kind>lora|lyco|hypernet)\s*:[^>]*>", re.IGNORECASE)
_EMBEDDING = re.compile(r"\bembedding:[^\s,()\[\]]+", re.IGNORECASE)
_TITLES = {"lora": "a LoRA", "lyco": "a LyCORIS network", "hypernet": "a hypernetwork"}
# compel's weights and functions, as in InvokeAI and diffusers: ball++, (a b)--, ("a", "b").and()
_COMPEL = re.compile(r"[\w)]\+\+|\)-(?:-|\s|$)|[\"')]\)\.(?:and|blend|swap)\(")
_ENDS_IN_WEIGHT = re.compile(r":\s*[-+]?(?:\d+\.?|\d*\.\d+)\s*$")


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


def hints(text: str, syntax: str) -> list[str]:
    """Notes about a prompt that may mean something else than was intended."""
    found = []
    if syntax != "plain" and _COMPEL.search(text):
        found.append(
            "the prompt looks like compel's syntax (word++, .and()), which is read as plain "
            "words; write (word:1.2) and AND instead"
        )
    weight = _ENDS_IN_WEIGHT.search(text) if syntax == "a1111" else None
    if weight is not None and not re.search(r"\bAND\b", text):
        number = weight[0].strip(": ")
        found.append(
            f"the prompt ends in :{number}, which is read as its weight, as in AUTOMATIC1111; "
            "add a full stop to keep it as text"
        )
    return found
