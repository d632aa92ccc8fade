"""What a checkpoint file is, from its header alone and without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ldm.checkpoints.families.choice import Choice, choose
from ldm.checkpoints.hashes import Hashes, hashes_of
from ldm.checkpoints.weights.header import FLOATS, Header, read_header
from ldm.checkpoints.weights.keys import (
    CONDITIONER,
    V_PRED,
    ZERO_SNR,
    Fit,
    compare,
    ema_copies,
    explain,
    part_of,
    text_encoder_key,
)
from ldm.errors import UsageError
from ldm.models.inventory import expected_shapes


@dataclass(frozen=True)
class Description:
    """What `ldm info` shows of a checkpoint.

    `family`, `config` and `fit` are None where the file is of no known family, and `problem` then
    says why. `parts` and `precisions` count numbers; `unused` counts tensors that are known to
    have no part in making an image. `prediction` is None if only a measurement can decide.
    """

    path: Path
    format: str
    size: int
    short_hash: str
    hashes: Hashes
    tensors: int
    parts: Mapping[str, int]
    precisions: Mapping[str, int]
    family: str | None
    task: str | None
    config: str | None
    prediction: str | None
    fit: Fit | None
    unused: int
    ema: bool
    dropped: tuple[str, ...]
    remarks: tuple[str, ...]
    metadata: Mapping[str, str]
    problem: str = ""


def describe(checkpoint: Path | str, config: Path | None = None) -> Description:
    """Describe a checkpoint; raises CheckpointError only for a file that is none."""
    header = read_header(checkpoint)
    choice, fit, unused, problem = None, None, 0, ""
    try:
        choice = choose(header, config)
        expected = expected_shapes(choice.config)
        several = any(key.startswith(CONDITIONER) for key in expected)
        named = {text_encoder_key(key, several): s for key, s in header.shapes.items()}
        fit = compare(named, expected)
        unused = sum(key not in expected for key in named) - len(fit.unexpected)
    except UsageError as error:
        problem = str(error)
    return Description(
        path=header.path,
        format=header.format,
        size=header.path.stat().st_size,
        short_hash=header.short_hash,
        hashes=hashes_of(header.path),
        tensors=len(header.tensors),
        parts=_numbers(header, part_of),
        precisions=_numbers(header, lambda key: header.tensors[key].dtype),
        family=choice.family.title if choice else None,
        task=choice.family.task if choice else None,
        config=choice.why if choice else None,
        prediction=_prediction(choice),
        fit=fit,
        unused=unused,
        ema=bool(ema_copies(header.tensors)),
        dropped=header.dropped,
        remarks=header.remarks + tuple(f"has the key {key}" for key in _markers(header)),
        metadata=header.metadata,
        problem=problem,
    )


def format_description(description: Description) -> str:
    """The description as lines for people."""
    d = description
    rows = [
        ("file", f"{d.path} ({d.format}, {_bytes(d.size)}, {d.tensors} tensors)"),
        ("hash", d.short_hash),
        ("SHA-256", d.hashes.sha256),
        ("AutoV1", d.hashes.autov1),
        ("AutoV2", d.hashes.autov2),
        ("AutoV3", d.hashes.autov3 or ""),
        ("family", f"{d.family} ({d.task})" if d.family else "unknown"),
        ("config", d.config or ""),
        ("prediction", (d.prediction or _UNDECIDED) if d.family else ""),
        ("precision", _shares(d.precisions)),
        ("parameters", _millions(sum(d.parts.values()))),
    ]
    rows += [(f"  {part}", _millions(count)) for part, count in d.parts.items()]
    if d.fit is not None:
        rows.append(("keys", "complete, no unknown keys" if d.fit.good else explain(d.fit)))
    if d.unused:
        rows.append(("unused", f"{d.unused} tensors that sampling does not need"))
    if d.ema:
        rows.append(("EMA", "has a copy of averaged weights"))
    if d.dropped:
        rows.append(("ignored", f"{', '.join(d.dropped)} (named by the file, never made)"))
    rows += [("note", remark) for remark in d.remarks]
    rows += [(key, _short(value)) for key, value in d.metadata.items()]
    if d.problem:
        rows.append(("problem", d.problem))
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in rows if text)


_UNDECIDED = "eps or v: not in the header; measured when loaded, or --prediction"


def _numbers(header: Header, kind_of: Callable[[str], str]) -> dict[str, int]:
    """Numbers of the floating-point tensors by a property of the key, the most first."""
    counts: Counter[str] = Counter()
    for key, entry in header.tensors.items():
        if entry.dtype in FLOATS:
            counts[kind_of(key)] += entry.count
    return dict(counts.most_common())


def _markers(header: Header) -> list[str]:
    return [key for key in (V_PRED, ZERO_SNR) if key in header.tensors]


def _prediction(choice: Choice | None) -> str | None:
    if choice is None or not choice.prediction_why:
        return None
    return f"{choice.family.prediction} ({choice.prediction_why})"


def _shares(precisions: Mapping[str, int]) -> str:
    total = sum(precisions.values()) or 1
    return ", ".join(f"{name} {100 * n / total:.3g}%" for name, n in precisions.items())


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M"


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def _short(text: str, most: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."
