"""Hints about prompts that may mean something else than was intended."""

from __future__ import annotations

import re

from ldm.text.schedule import CHANGING, final_weight, split_and, stretches

# compel's weights and functions, as in InvokeAI and diffusers: ball++, (a b)--, ("a", "b").and()
_COMPEL = re.compile(r"[\w)]\+\+|\)-(?:-|\s|$)|[\"')]\)\.(?:and|blend|swap)\(")
_EDIT = re.compile(r"\[[^\[\]]*:[^\[\]]*\]")


def hints(text: str, syntax: str) -> list[str]:
    """Notes about a prompt that may mean something else than was intended."""
    found = []
    if syntax != "plain" and _COMPEL.search(text):
        found.append(
            "the prompt looks like compel's syntax (word++, .and()), which is read as plain "
            "words; write (word:1.2) and AND instead"
        )
    if syntax == CHANGING and any(_loses_edits(part.text) for part in split_and(text)):
        found.append(
            "the prompt has a | outside of square brackets, so that all its edits are read as "
            "text, as in AUTOMATIC1111"
        )
    is_single = syntax == CHANGING and len(split_and(text)) == 1
    weight = final_weight(text) if is_single else None
    if weight is not None:
        found.append(
            f"the prompt ends in :{weight}, which is read as its weight, as in AUTOMATIC1111; "
            "add a full stop to keep it as text"
        )
    return found


def _loses_edits(text: str) -> bool:
    """Whether a prompt with an edit and a | never changes."""
    return "|" in text and bool(_EDIT.search(text)) and stretches(text, 20)[0].text == text
