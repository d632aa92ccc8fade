"""Do the bundled models draw what the prompt says? Exits 1 if a bar is missed.

    python benchmarks/demo_quality.py [--model NAME] [--n 200] [--json FILE] [--grid FILE.png]
    python benchmarks/demo_quality.py --task inpaint|depth2img|upscale [...]
    python benchmarks/demo_quality.py --precision int8 --beside full [...]

Every prompt is held out: single prompts ask for a glyph on a background that training never put it
on, two-glyph prompts for a pair that training never showed. `--truth` measures the data's own
drawings in place of the model's, and so the metric itself. Needs the font of the training data.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a bare checkout, too

from benchmarks import demo_tasks
from benchmarks.demo_model import DemoModel
from benchmarks.demo_prompts import Generate, Prompt, pair_prompts, single_prompts
from benchmarks.retrieval import Finder, Match, background_of, psnr
from ldm.errors import LdmError
from ldm.jobs.fields import PRECISIONS
from ldm.training.data import FONT, GlyphSheet, Pixels, Scenes, render
from ldm.training.glyphs import GLYPHS
from ldm.training.scenes import CANVAS, Placed, Scene

BARS = demo_tasks.BARS | {
    "single glyph, nearest of all is the right one": 0.90,
    "single glyph, background colour right": 0.95,
    "two glyphs, both found": 0.70,
    "autoencoder PSNR on held-out scenes, dB": 27.0,
}
SINGLE, BACKGROUND, PAIR, PSNR = list(BARS)[-4:]
PSNR_SCENES = 256
TASKS = ("txt2img", "inpaint", "depth2img", "upscale")


@dataclass
class Report(demo_tasks.Figures):
    """Figures beside their bars."""

    def missed(self) -> list[str]:
        """The names of the bars that the figures do not reach."""
        return [name for name, value in self.figures.items() if value < BARS[name]]

    def table(self) -> str:
        """The figures beside their bars, one a line."""
        lines = [f"{'':46} {'figure':>8} {'bar':>8}"]
        for name, value in self.figures.items():
            verdict = "reached" if value >= BARS[name] else "MISSED"
            lines.append(f"{name:46} {value:8.3f} {BARS[name]:8.2f}  {verdict}")
        lines += [f"{name:46} {value:8.3f}" for name, value in self.extra.items()]
        return "\n".join(lines)


def true_image(prompt: Prompt, sheet: GlyphSheet, rng: random.Random) -> Pixels:
    """A faithful drawing of a prompt, by the hand that drew the training data."""
    if len(prompt.glyphs) == 1:
        size = rng.choice(range(56, 101, 4))
        x, y = rng.randint(2, 126 - size), rng.randint(2, 126 - size)
        placed = [Placed(prompt.glyphs[0], x, y, size)]
    else:
        size = rng.choice(range(44, 61, 4))
        corners = [(2 + rng.randint(0, 4), 30), (126 - size, 30 + rng.randint(0, 12))]
        if prompt.relation == "above":
            corners = [(y, x) for x, y in corners]
        placed = [Placed(g, x, y, size) for g, (x, y) in zip(prompt.glyphs, corners, strict=True)]
    return render(Scene(tuple(placed), prompt.background, prompt.text), sheet)


def relation_holds(relation: str, first: Match, second: Match) -> bool:
    """Whether the first glyph found stands "left of" or "above" the second."""
    (x1, y1), (x2, y2) = first.centre, second.centre
    return x2 - x1 > abs(y2 - y1) if relation == "left of" else y2 - y1 > abs(x2 - x1)


def judge_single(prompts: Sequence[Prompt], images: Pixels, finder: Finder, report: Report) -> None:
    """Retrieval and background colour of images of one glyph, into the report."""
    found = [finder.one(image) for image in images]
    grounds = [background_of(image) for image in images]
    right = [m.glyph == p.glyphs[0] for m, p in zip(found, prompts, strict=True)]
    ground_right = [b == p.background for b, p in zip(grounds, prompts, strict=True)]
    report.figures[SINGLE] = float(np.mean(right))
    report.figures[BACKGROUND] = float(np.mean(ground_right))
    report.extra["single glyph, mean likeness (1 = pixel for pixel)"] = float(
        np.mean([match.score for match in found])
    )
    for prompt, match, ground, ok, ground_ok in zip(
        prompts, found, grounds, right, ground_right, strict=True
    ):
        if not (ok and ground_ok):
            shown = f"{match.glyph.name} on {ground.name}"
            report.failures.append({"prompt": prompt.text, "found": shown})


def judge_pairs(prompts: Sequence[Prompt], images: Pixels, finder: Finder, report: Report) -> None:
    """Both glyphs found, backgrounds and relations, of images of two, into the report."""
    both, grounds, relations = [], [], []
    for prompt, image in zip(prompts, images, strict=True):
        matches = finder.two(image)
        by_char = {match.glyph.char: match for match in matches}
        both.append({g.char for g in prompt.glyphs} == set(by_char))
        grounds.append(background_of(image) == prompt.background)
        if not both[-1]:
            shown = " and ".join(match.glyph.name for match in matches)
            report.failures.append({"prompt": prompt.text, "found": shown})
        elif prompt.relation:
            first, second = (by_char[glyph.char] for glyph in prompt.glyphs)
            relations.append(relation_holds(prompt.relation, first, second))
    report.figures[PAIR] = float(np.mean(both))
    report.extra["two glyphs, background colour right"] = float(np.mean(grounds))
    if relations:
        name = "two glyphs, relation right where both found"
        report.extra[name] = float(np.mean(relations))


def judge_beside(
    prompts: Sequence[Prompt], images: Pixels, others: Pixels, finder: Finder, report: Report
) -> None:
    """Images of one glyph beside those of another precision, same seeds, into the report."""
    right = [finder.one(o).glyph == p.glyphs[0] for o, p in zip(others, prompts, strict=True)]
    nearness = psnr(images, others)
    report.extra["beside: nearest of all is the right one"] = float(np.mean(right))
    report.extra["beside: PSNR of these to those, dB, mean"] = float(nearness.mean())
    report.extra["beside: PSNR of these to those, dB, least"] = float(nearness.min())


def contact_sheet(
    images: Sequence[Pixels], captions: Sequence[str], columns: int = 6
) -> Image.Image:
    """The images in rows, each with its caption below."""
    cell, strip = CANVAS + 8, 40
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * (cell + strip)), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(10)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = index % columns * cell + 4, index // columns * (cell + strip) + 4
        sheet.paste(Image.fromarray(image), (left, top))
        pen.rectangle((left - 1, top - 1, left + CANVAS, top + CANVAS), outline="lightgray")
        lines = "\n".join(textwrap.wrap(caption, 25)[:3])
        pen.multiline_text((left, top + CANVAS + 2), lines, fill="black", font=font, spacing=1)
    return sheet


def truth(sheet: GlyphSheet, seed: int) -> Generate:
    """Draws prompts as the data would."""
    rng = random.Random(seed)
    return lambda prompts: np.stack([true_image(p, sheet, rng) for p in prompts])


def run(args: argparse.Namespace) -> int:
    """Draw, judge, and write; 0 if every bar is reached."""
    sheet = GlyphSheet(args.font)
    judge = run_prompts if args.task == "txt2img" else run_task
    report, grid = judge(args, sheet)
    sys.stdout.write(report.table() + "\n")
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k not in ("json", "grid", "font")}
        told = {name: getattr(report, name) for name in ("figures", "extra", "failures")}
        record = {"settings": settings, **told}
        Path(args.json).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if args.grid:
        grid.save(args.grid)
    return 1 if report.missed() else 0


def run_prompts(args: argparse.Namespace, sheet: GlyphSheet) -> tuple[Report, Image.Image]:
    """The figures of images from prompts, and a sheet of some."""
    started = time.perf_counter()
    report = Report()
    if args.truth:
        draw, among = truth(sheet, args.seed), GLYPHS
    else:
        model = DemoModel(args.model, args.device, precision=args.precision)
        draw, among = model.generate(args), model.glyphs
    report.extra["glyphs the model has seen"] = len(among)
    singles = single_prompts(args.n, args.seed, among)
    pairs = pair_prompts(args.n // 2, args.seed, among)
    images_of_one, images_of_two = draw(singles), draw(pairs)
    drawn = time.perf_counter() - started
    finder = Finder(sheet)
    judge_single(singles, images_of_one, finder, report)
    judge_pairs(pairs, images_of_two, finder, report)
    if args.beside:
        other = DemoModel(args.model, args.device, precision=args.beside).generate(args)(singles)
        judge_beside(singles, images_of_one, other, finder, report)
    if not args.truth:
        true, _ = Scenes(args.font, seed=args.seed, split="test").batch(0, PSNR_SCENES)
        report.figures[PSNR] = float(psnr(true, model.through_autoencoder(true)).mean())
    report.extra["seconds to draw one image"] = drawn / (len(singles) + len(pairs))
    shown = [*images_of_one[:24], *images_of_two[:12]]
    captions = [prompt.text for prompt in (*singles[:24], *pairs[:12])]
    return report, contact_sheet(shown, captions)


def run_task(args: argparse.Namespace, sheet: GlyphSheet) -> tuple[Report, Image.Image]:
    """The figures of a model for images, and a sheet of some with what they are of."""
    model = DemoModel(args.model, args.device, args.task, args.precision)
    solve = model.solve(args)
    if args.task == "upscale":
        told = demo_tasks.upscaling(args.n, args.seed, sheet, solve)
    else:
        judge = demo_tasks.inpainting if args.task == "inpaint" else demo_tasks.depth
        told = judge(args.n, args.seed, sheet, Finder(sheet), solve)
    images = [image for before, after, _ in told.shown for image in (before, after)]
    captions = [text for *_, prompt in told.shown for text in ("", prompt)]
    return Report(**vars(told)), contact_sheet(images, captions)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; 2 for what the user can mend."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="checkpoint (default: the bundled model of the task)")
    parser.add_argument("--task", default="txt2img", choices=TASKS, help="what to judge")
    parser.add_argument("--n", type=int, default=200, help="single prompts, and twice the pairs")
    parser.add_argument("--seed", type=int, default=2022)
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--sampler", help="default: the model's own")
    parser.add_argument("--scale", type=float, help="default: the model's own")
    parser.add_argument("--batch", type=int, default=20, help="images at a time")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--beside", choices=PRECISIONS, help="compare with another precision")
    parser.add_argument("--font", default=str(FONT))
    parser.add_argument("--truth", action="store_true", help="judge true drawings: the ceiling")
    parser.add_argument("--json", metavar="FILE", help="write figures and failures")
    parser.add_argument("--grid", metavar="FILE", help="write a sheet of 36 (24 single, 12 pairs)")
    args = parser.parse_args(argv)
    if args.n < 2:
        parser.error("--n must be 2 or more")
    if (args.truth or args.beside) and args.task != "txt2img":
        parser.error("--truth and --beside are for images from prompts")
    if args.truth and args.beside:
        parser.error("--truth draws nothing that has a precision")
    try:
        return run(args)
    except LdmError as error:
        sys.stderr.write(f"demo_quality: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
