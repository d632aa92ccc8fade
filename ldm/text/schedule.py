"""Prompts that change while they are sampled: editing, alternation, and several joined by AND.

The grammar and its edge cases are those of AUTOMATIC1111's web UI (modules/prompt_parser.py; its
wiki: Prompt editing, Alternating Words, Composable Diffusion). docs/prompts.md has examples.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MOST_NESTED = 100
"""Brackets inside each other up to which an edit is recognised; beyond it they are characters."""

CHANGING = "a1111"
"""The syntax of prompts that change; in the others a prompt is one text."""

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"\s*:\s*(?P<weight>[-+]?(?:\d+\.?|\d*\.\d+))\s*$")
_PLAIN = re.compile(r"(?:[^\\\[\]():|]|\\.)+")
_WHEN = re.compile(
    r"\s*(?P<number>[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?))\s*\]"
)


@dataclass(frozen=True)
class Part:
    """One of the prompts that AND joins, and the weight of its direction."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Stretch:
    """What a prompt says until the denoiser has been called `until` + 1 times.

    The web UI compares a count that starts at 0 with the step, so that the first text of
    `[a:b:5]` holds for six calls. The last stretch has no end.
    """

    until: int
    text: str


def split_and(text: str, syntax: str = CHANGING) -> list[Part]:
    """The prompts that the word AND separates; each may end in `:weight`."""
    if syntax != CHANGING:
        return [Part(text)]
    parts = []
    for piece in _AND.split(text):
        indent = len(piece) - len(piece.lstrip())
        found = _WEIGHT.search(piece)
        end = len(piece.rstrip()) if found is None else found.start()
        weight = 1.0 if found is None else float(found["weight"])
        parts.append(Part(piece[: max(indent, end)], weight))
    return parts


def final_weight(text: str) -> str | None:
    """The number that a prompt ends in after a colon, as it is written; None without one."""
    found = _WEIGHT.search(text)
    return None if found is None else found["weight"]


def stretches(
    text: str,
    steps: int,
    before: int = 0,
    *,
    has_second_pass: bool = False,
    syntax: str = CHANGING,
) -> list[Stretch]:
    """What a prompt says in each part of `steps` calls of the denoiser, in order.

    A number below 1 is a share of `steps`, another one a count of them. With hires fix numbers go
    on in the second pass, which comes after `before` steps: 1.5 is the middle of it.
    """
    tree = _Grammar(text).whole() if syntax == CHANGING else None
    if tree is None:
        return [Stretch(steps, text)]
    clock = _Clock(steps, before, has_second_pass)
    ends = {steps, *tree.ends(clock)}
    found: list[Stretch] = []
    for end in sorted(ends):
        text_then = tree.at(end, clock)
        if found and found[-1].text == text_then:
            found[-1] = Stretch(end, text_then)
        else:
            found.append(Stretch(end, text_then))
    return found


@dataclass(frozen=True)
class _Clock:
    """How the numbers of edits are counted."""

    steps: int
    before: int
    has_second_pass: bool

    def end(self, number: str) -> int:
        """The step after which an edit happens."""
        value = float(number)
        if self.before:
            value = (value - 1) * self.steps if "." in number else value - self.before
        elif value < 1 or (self.has_second_pass and "." in number):
            value *= self.steps
        return min(self.steps, int(value))


class _Node:
    """A part of a prompt."""

    def at(self, step: int, clock: _Clock) -> str:
        """What it says at a step, counted from 1."""
        raise NotImplementedError

    def ends(self, clock: _Clock) -> Iterator[int]:
        """The steps after which it changes."""
        yield from ()


@dataclass(frozen=True)
class _Text(_Node):
    text: str

    def at(self, step: int, clock: _Clock) -> str:
        return self.text


@dataclass(frozen=True)
class _Sequence(_Node):
    nodes: tuple[_Node, ...]

    def at(self, step: int, clock: _Clock) -> str:
        return "".join(node.at(step, clock) for node in self.nodes)

    def ends(self, clock: _Clock) -> Iterator[int]:
        for node in self.nodes:
            yield from node.ends(clock)


@dataclass(frozen=True)
class _Edit(_Node):
    before: _Node
    after: _Node
    number: str

    def at(self, step: int, clock: _Clock) -> str:
        chosen = self.before if step <= clock.end(self.number) else self.after
        return chosen.at(step, clock)

    def ends(self, clock: _Clock) -> Iterator[int]:
        if not clock.before or clock.end(self.number) >= 1:  # an earlier pass was beyond it
            yield clock.end(self.number)
        yield from self.before.ends(clock)
        yield from self.after.ends(clock)


@dataclass(frozen=True)
class _Turns(_Node):
    choices: tuple[_Node, ...]

    def at(self, step: int, clock: _Clock) -> str:
        return self.choices[(step - 1) % len(self.choices)].at(step, clock)

    def ends(self, clock: _Clock) -> Iterator[int]:
        yield from range(1, clock.steps + 1)
        for choice in self.choices:
            yield from choice.ends(clock)


class _Grammar:
    """Reads one prompt; each bracket is tried once, from whichever side it is reached."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tried: dict[int, tuple[_Node, int] | None] = {}

    def whole(self) -> _Node | None:
        """The prompt; None where it has no meaning but that of its characters."""
        nodes: list[_Node] = []
        place = 0
        while place < len(self.text):
            node, after = self._sequence(place, 0)
            nodes.append(node)
            if after < len(self.text):
                if self.text[after] not in "[]():":  # a bar or a backslash that stands alone
                    return None
                nodes.append(_Text(self.text[after]))  # a bracket without its other half
                after += 1
            place = after
        return _Sequence(tuple(nodes))

    def _sequence(self, place: int, depth: int) -> tuple[_Node, int]:
        """What can be read from a place on, and where it ends."""
        nodes: list[_Node] = []
        while place < len(self.text):
            plain = _PLAIN.match(self.text, place)
            if plain is not None:
                nodes.append(_Text(plain[0]))
                place = plain.end()
                continue
            found = self._brackets(place, depth) if self.text[place] in "[(" else None
            if found is None:
                break
            nodes.append(found[0])
            place = found[1]
        return (nodes[0] if len(nodes) == 1 else _Sequence(tuple(nodes))), place

    def _brackets(self, place: int, depth: int) -> tuple[_Node, int] | None:
        """What a pair of brackets says, and where it ends; None where there is no such pair."""
        if depth >= MOST_NESTED:
            return None
        if place not in self.tried:
            read = self._round if self.text[place] == "(" else self._square
            self.tried[place] = read(place, depth + 1)
        return self.tried[place]

    def _round(self, place: int, depth: int) -> tuple[_Node, int] | None:
        """(x) or (x:y), which stay as they are for the weights to be read."""
        nodes: list[_Node] = [_Text("(")]
        inside, after = self._sequence(place + 1, depth)
        nodes.append(inside)
        if self._is_at(after, ":"):
            inside, after = self._sequence(after + 1, depth)
            nodes += [_Text(":"), inside]
        if not self._is_at(after, ")"):
            return None
        return _Sequence((*nodes, _Text(")"))), after + 1

    def _square(self, place: int, depth: int) -> tuple[_Node, int] | None:
        """[x] as it is, [x|y] in turns, [x:2] and [x:y:2] as an edit."""
        inside, after = self._sequence(place + 1, depth)
        if self._is_at(after, "]"):
            return _Sequence((_Text("["), inside, _Text("]"))), after + 1
        if self._is_at(after, "|"):
            return self._turns(inside, after, depth)
        if not self._is_at(after, ":"):
            return None
        when = _WHEN.match(self.text, after + 1)
        if when is not None:
            return _Edit(_Text(""), inside, when["number"]), when.end()
        later, after = self._sequence(after + 1, depth)
        when = _WHEN.match(self.text, after + 1) if self._is_at(after, ":") else None
        return None if when is None else (_Edit(inside, later, when["number"]), when.end())

    def _turns(self, first: _Node, after: int, depth: int) -> tuple[_Node, int] | None:
        choices = [first]
        while self._is_at(after, "|"):
            choice, after = self._sequence(after + 1, depth)
            choices.append(choice)
        return (_Turns(tuple(choices)), after + 1) if self._is_at(after, "]") else None

    def _is_at(self, place: int, mark: str) -> bool:
        return self.text[place : place + 1] == mark
