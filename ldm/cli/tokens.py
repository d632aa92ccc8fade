"""How a model's text encoder reads a prompt, without torch or weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import typer

from ldm.checkpoints.families.choice import Choice, choose
from ldm.checkpoints.locate import find_checkpoint, find_config
from ldm.checkpoints.weights.header import Header, read_header
from ldm.engine.fit import model_section
from ldm.errors import ConfigError, JobError
from ldm.jobs.job import Job
from ldm.jobs.loras import split_tags
from ldm.text.chunks import Chunked, Token, chunked
from ldm.text.schedule import split_and, stretches
from ldm.text.tokenizer import LENGTH, Tokenizer, clip_tokenizer, open_clip_tokenizer
from ldm.text.wordpiece import bert_tokenizer, find_vocabulary

_KEPT = "cond_stage_model.kept_tokens"


@dataclass(frozen=True)
class _Reading:
    """What is read of one of the prompts that AND joins, up to a step; `part` is its number."""

    part: int
    weight: float
    until: int
    chunks: Chunked


def tokens(
    prompt: str,
    *,
    model: str | None,
    config: str | None,
    syntax: str,
    steps: int | None,
    as_json: bool,
) -> int:
    """Print the chunks of a prompt, their tokens and weights, and what is cut off or unknown.

    A prompt that changes is shown for each part of its `steps`, by default those of the model.
    """
    Job(prompt=prompt, prompt_syntax=syntax, steps=steps).validate()
    checkpoint, notes = find_checkpoint(model)
    yaml, more = find_config(config)
    header = read_header(checkpoint)
    choice = choose(header, yaml)
    tokenizer, length = text_encoder(choice, header)
    prompt, loras = split_tags(prompt, syntax)
    total = steps or choice.family.defaults.steps
    found = [
        _Reading(number, part.weight, x.until, chunked(x.text, tokenizer, length - 2, syntax))
        for number, part in enumerate(split_and(prompt, syntax), 1)
        for x in stretches(part.text, total, syntax=syntax)
        if x.until > 0  # an edit may be over before the first step
    ]
    known = kept_tokens(header)
    if as_json:
        first = _as_json(found[0].chunks, length - 2, known)
        parts = [
            {"part": one.part, "weight": one.weight, "until": one.until}
            | _as_json(one.chunks, length - 2, known)
            for one in found
        ]
        changes = {"steps": total, "parts": parts} if len(found) > 1 or found[0].weight != 1 else {}
        typer.echo(json.dumps(first | {"model": checkpoint.stem} | changes))
        return 0
    for note in (*notes, *more):
        typer.echo(f"ldm: {note}", err=True)
    for lora in loras:
        weights = f"{lora.network:g} for the network and {lora.text:g} for text"
        typer.echo(f"LoRA {lora.name}, weight {weights}")
    for one in found:
        if len(found) > 1 or one.weight != 1:
            typer.echo(
                f"prompt {one.part}, weight {one.weight:g}, until step {one.until} of {total}"
            )
        typer.echo(_shown(one.chunks, length - 2, known))
    return 0


def text_encoder(choice: Choice, header: Header) -> tuple[Tokenizer, int]:
    """A model's tokenizer, and the tokens that its encoder takes at once, start and end included.

    Raises JobError for a model that reads no text, and CheckpointError where its vocabulary is not
    to be found.
    """
    section = model_section(choice.config, "cond_stage_config")
    name = str(section.get("target")).rpartition(".")[2]
    params = section.get("params") or {}
    if name == "FrozenCLIPEmbedder":
        return clip_tokenizer(), _length(params, "max_length")
    if name.startswith("FrozenOpenCLIPEmbedder"):
        return open_clip_tokenizer(), _length(params, "max_length")
    if name == "BERTEmbedder" and params.get("use_tokenizer", True):
        vocabulary = find_vocabulary(header.path.parent, params.get("bert_vocab"))
        return bert_tokenizer(vocabulary), _length(params, "max_seq_len")
    raise JobError(f"{header.path}: a {choice.family.title} model reads no text")


def kept_tokens(header: Header) -> frozenset[int] | None:
    """The token ids that a cut vocabulary has; None for a whole one."""
    entry = header.tensors.get(_KEPT)
    if entry is None or entry.dtype != "I64" or entry.strides is not None:
        return None
    with header.path.open("rb") as file:
        file.seek(entry.start)
        return frozenset(struct.unpack(f"<{entry.count}q", file.read(entry.size)))


def _length(params: Mapping[str, Any], key: str) -> int:
    length = params.get(key, LENGTH)
    if type(length) is not int or length < 3:
        raise ConfigError(f"cond_stage_config.params.{key} must be a number over 2, not {length!r}")
    return length


def _is_unknown(token: Token, known: frozenset[int] | None) -> bool:
    return known is not None and token.id not in known


def _as_json(found: Chunked, room: int, known: frozenset[int] | None) -> dict[str, Any]:
    """Everything as plain JSON values; `count` is without start, end and padding."""
    return {
        "count": found.count,
        "room": room,
        "chunks": [
            [vars(token) | {"known": not _is_unknown(token, known)} for token in chunk]
            for chunk in found.chunks
        ],
        "cut": found.cut,
    }


def _shown(found: Chunked, room: int, known: frozenset[int] | None) -> str:
    lines = []
    for number, chunk in enumerate(found.chunks, 1):
        lines.append(f"chunk {number} of {len(found.chunks)}: {len(chunk)} of {room} tokens")
        for token in chunk:
            unknown = "  (not known to the model)" if _is_unknown(token, known) else ""
            lines.append(f"{token.id:>7}  {token.weight:<7.4g} {token.text}{unknown}")
    if found.cut:
        lines.append(f"cut off at the end: {found.cut!r}")
    return "\n".join(lines)
