"""The graph of nodes that ComfyUI executes, and how to walk it against its links.

Format: {"id": {"class_type": name, "inputs": {name: value, or ["id of another node", output]}}}.
Graphs may be damaged or contain circles; every walk visits a node once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any

# Inputs under which nodes that only pass a value on keep it.
_VALUES = (
    "value", "int", "float", "number", "seed", "noise_seed", "text", "string", "prompt", "Value",
    "STRING", "text_positive", "wildcard_text",
)  # fmt: skip


_MOST_HOPS = 100  # nodes that a value is passed on by; ends circles, too


class Graph:
    """Nodes by id; entries that are no nodes are left out."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.nodes: dict[str, dict[str, Any]] = {
            str(name): node
            for name, node in content.items()
            if isinstance(node, dict)
            and isinstance(node.get("inputs"), dict)
            and isinstance(node.get("class_type"), str)
        }

    def kind(self, name: str) -> str:
        """The class of a node."""
        return str(self.nodes[name]["class_type"])

    def inputs(self, name: str) -> dict[str, Any]:
        """The inputs of a node: values, and links as lists."""
        inputs: dict[str, Any] = self.nodes[name]["inputs"]
        return inputs

    def link(self, name: str, key: str) -> str | None:
        """The node that an input is linked to, if it is and that node exists."""
        value = self.inputs(name).get(key)
        if isinstance(value, list) and len(value) == 2 and str(value[0]) in self.nodes:
            return str(value[0])
        return None

    def value(self, name: str, key: str) -> Any:
        """The value of an input, followed through nodes that pass one on; None without one."""
        for _ in range(_MOST_HOPS):
            value = self.inputs(name).get(key)
            if not isinstance(value, list):
                return value
            linked = self.link(name, key)
            if linked is None:
                return None
            inputs = self.inputs(linked)
            name = linked
            key = next((word for word in (key, *_VALUES) if word in inputs), "")
            if not key:
                return None
        return None

    def upstream(
        self,
        start: str | Collection[str] | None,
        keys: Collection[str] = (),
        without: Collection[str] = (),
    ) -> Iterator[str]:
        """A node, or several, and those before it, nearest first.

        Follows the links of the inputs `keys` where a node has any of them, else all but `without`.
        """
        queue = deque([start] if isinstance(start, str) else start or ())
        seen = set(queue)
        while queue:
            name = queue.popleft()
            yield name
            inputs = self.inputs(name)
            wanted = [key for key in keys if self.link(name, key) is not None]
            for key in wanted or [key for key in inputs if key not in without]:
                linked = self.link(name, key)
                if linked is not None and linked not in seen:
                    seen.add(linked)
                    queue.append(linked)
