"""Results as a table, as JSON and as an image."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

OURS = "ldm"


@dataclass(frozen=True)
class Entry:
    """One peer in one row: medians in seconds, bytes at the peak, and how its output differs.

    `held` is what was resident before the run (weights), 0 for whole processes; `difference` is the
    largest one from ldm's output, over its deviation; `share` is of the machine's measured limit.
    """

    row: str
    peer: str
    wall: float
    cpu: float
    peak: int
    held: int = 0
    difference: float | None = None
    share: float | None = None
    times: tuple[float, ...] = ()


def entry(row: str, peer: str, runs: Sequence[Mapping[str, float]], **more: float | None) -> Entry:
    """The entry of some runs, each with wall, cpu, peak and perhaps ready."""
    walls = [float(run["wall"]) for run in runs]
    return Entry(
        row=row,
        peer=peer,
        wall=statistics.median(walls),
        cpu=statistics.median(float(run["cpu"]) for run in runs),
        peak=max(int(run["peak"]) for run in runs),
        held=int(runs[0].get("ready", 0)),
        times=tuple(round(wall, 4) for wall in walls),
        difference=more.get("difference"),
        share=more.get("share"),
    )


def ratio(entries: Sequence[Entry], one: Entry, *, cpu: bool = False) -> float | None:
    """ldm's seconds over this peer's in the same row, on the clock or of CPU."""
    ours = next((each for each in entries if each.row == one.row and each.peer == OURS), None)
    of_one = one.cpu if cpu else one.wall
    if ours is None or not of_one:
        return None
    return (ours.cpu if cpu else ours.wall) / of_one


def markdown(entries: Sequence[Entry], about: Mapping[str, str], notes: Sequence[str]) -> str:
    """A table for people."""
    lines = [f"- {name}: {text}" for name, text in about.items()]
    lines += [f"- left out: {note}" for note in notes]
    lines += [
        "",
        "Seconds are medians on the clock; `ldm / it` is ldm's time over the peer's, so ldm is",
        "ahead where it is under 1. Memory is the peak of resident bytes, mapped files among them.",
        "",
        "| row | peer | seconds | ldm / it | CPU s | ldm / it | peak MiB | of limit | differs by |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in entries:
        times, work = ratio(entries, one), ratio(entries, one, cpu=True)
        share = "" if one.share is None else f"{one.share:.0%}"
        differs = "" if one.difference is None else f"{one.difference:.0e}"
        compared = "" if times is None else f"{times:.2f}"
        worked = "" if work is None else f"{work:.2f}"
        cpu = f"{one.cpu:.2f}" if one.cpu else ""  # of its own parts sd.cpp tells no CPU seconds
        lines.append(
            f"| {one.row} | {one.peer} | {one.wall:.2f} | {compared} | {cpu} | {worked} "
            f"| {one.peak / 2**20:.0f} | {share} | {differs} |"
        )
    return "\n".join(lines) + "\n"


def write(
    folder: Path,
    name: str,
    entries: Sequence[Entry],
    about: Mapping[str, str],
    notes: Sequence[str],
) -> Path:
    """Write NAME.md, NAME.json and NAME.png into a folder; gives the first."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"about": about, "notes": notes, "entries": [asdict(one) for one in entries]}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    draw(entries, folder / f"{name}.png")
    table = folder / f"{name}.md"
    table.write_text(f"# {name}\n\n{markdown(entries, about, notes)}", "utf-8")
    return table


def read(folder: Path, name: str) -> list[Entry]:
    """What was written under a name, or nothing."""
    path = folder / f"{name}.json"
    if not path.exists():
        return []
    content = json.loads(path.read_text("utf-8"))
    return [Entry(**{**one, "times": tuple(one["times"])}) for one in content["entries"]]


# --- the image ----------------------------------------------------------------------------------

_LEFT, _WIDTH, _BAR, _GAP = 290, 520, 18, 12
_OWN, _OTHER, _INK = (214, 69, 65), (150, 165, 180), (40, 44, 52)


def draw(entries: Sequence[Entry], path: Path) -> None:
    """Bars of seconds, each row to its own scale, ldm's in red."""
    from PIL import Image, ImageDraw, ImageFont

    rows: dict[str, list[Entry]] = {}
    for one in entries:
        rows.setdefault(one.row, []).append(one)
    height = sum((len(row) + 1) * _BAR + _GAP for row in rows.values()) + _GAP
    image = Image.new("RGB", (_LEFT + _WIDTH + 160, height), "white")
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    top = _GAP
    for name, row in rows.items():
        canvas.text((_GAP, top), name, fill=_INK, font=font)
        top += _BAR
        longest = max(one.wall for one in row)
        for one in row:
            length = max(1, round(_WIDTH * one.wall / longest))
            colour = _OWN if one.peer == OURS else _OTHER
            canvas.text((2 * _GAP, top), one.peer, fill=_INK, font=font)
            canvas.rectangle((_LEFT, top + 3, _LEFT + length, top + _BAR - 2), fill=colour)
            told = f"{one.wall:.2f} s, {one.peak / 2**20:.0f} MiB"
            canvas.text((_LEFT + length + 6, top), told, fill=_INK, font=font)
            top += _BAR
        top += _GAP
    image.save(path)
