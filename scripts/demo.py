"""What `make demo` shows: the commands that have a bundled model, on one contact sheet.

python scripts/demo.py [--outdir outputs/demo] [--seed 1]

Every image is made by the command line that is printed before it.
"""

import argparse
import contextlib
import io
import itertools
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ldm.checkpoints.config import resource
from ldm.checkpoints.locate import BUNDLED
from ldm.cli.app import run

SIDE, BAND = 128, 34


@dataclass(frozen=True)
class Shot:
    """One command and its image; `shown` are the images it begins with."""

    words: tuple[str, ...]
    image: Path
    shown: tuple[Path, ...] = ()


def shots(folder: Path, seed: int) -> list[Shot]:
    """The commands, each with what it needs from those before it."""
    place = {name: folder / f"{name}.png" for name in ("txt2img", "img2img", "inpaint")}
    place |= {name: folder / f"{name}.png" for name in ("depth2img", "upscale")}
    mask, depth, small = (folder / name for name in ("mask.png", "depth.png", "small.png"))

    def shot(task: str, *words: object, shown: Sequence[Path] = ()) -> Shot:
        told = (task, *map(str, words), "--seed", str(seed), "--output", str(place[task]))
        return Shot(told, place[task], tuple(shown))

    first = place["txt2img"]
    return [
        shot("txt2img", "--prompt", "a red apple on a blue background"),
        shot(
            "img2img", "--init-img", first, "--strength", 0.8,
            "--prompt", "a lemon on a blue background", shown=[first],
        ),
        shot(
            "inpaint", "--init-img", first, "--mask", mask,
            "--prompt", "a cat on a blue background", shown=[first, mask],
        ),
        shot(
            "depth2img", "--init-img", first, "--depth", depth, "--strength", 1,
            "--prompt", "a globe on a yellow background", shown=[depth],
        ),
        shot("upscale", "--init-img", small, shown=[small]),
    ]  # fmt: skip


def is_bundled(task: str) -> bool:
    """Whether a model for a command lies where the bundled ones do."""
    return any((resource("models") / f"{name}.safetensors").is_file() for name in BUNDLED[task])


def new_folder(wanted: Path) -> Path:
    """Make that folder, or the first of its name with a number that is not there yet."""
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError


def draw_inputs(folder: Path) -> None:
    """What is painted by hand: a mask to repaint, and a depth to keep to (near is bright)."""
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).rectangle((8, 4, 119, 115), fill=255)
    mask.save(folder / "mask.png")
    depth = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(depth).ellipse((22, 20, 109, 107), fill=255)
    depth.save(folder / "depth.png")


def contact_sheet(made: Sequence[Shot]) -> Image.Image:
    """A column for every command: what it began with above, its image and its name below."""
    font = ImageFont.load_default(11)
    width, height = len(made) * (SIDE + 8), 2 * SIDE + BAND + 16
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    for column, shot in enumerate(made):
        left = column * (SIDE + 8) + 4
        given = shot.shown[-1:] if shot.words[0] != "inpaint" else shot.shown
        for path in given:
            with Image.open(path) as image:
                # A small image stays small; the mask lies over its image as a frame.
                if path.name == "mask.png":
                    pen.rectangle(_moved(image.getbbox(), left, 4), outline="white")
                else:
                    sheet.paste(image.convert("RGB"), (left, 4))
        with Image.open(shot.image) as image:
            sheet.paste(image.convert("RGB"), (left, SIDE + 8))
        told = [word for flag, word in _flags(shot.words) if flag == "--prompt"] or [""]
        lines = f"{shot.words[0]}\n{told[0]}".replace(" on ", "\non ")
        pen.multiline_text((left, 2 * SIDE + 10), lines, fill="black", font=font, spacing=0)
    return sheet


def _moved(box: tuple[int, int, int, int] | None, x: int, y: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = box or (0, 0, 1, 1)
    return left + x, top + y, right - 1 + x, bottom - 1 + y


def _flags(words: Sequence[str]) -> list[tuple[str, str]]:
    return list(itertools.pairwise(words))


def main() -> int:
    """Make the images and the sheet; the exit code of the first command that fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--outdir", default="outputs/demo")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    folder = new_folder(Path(args.outdir))
    draw_inputs(folder)
    made = [shot for shot in shots(folder, args.seed) if is_bundled(shot.words[0])]
    for shot in made:
        if shot.words[0] == "upscale":
            with Image.open(made[0].image) as image:
                image.resize((SIDE // 4, SIDE // 4), Image.Resampling.BICUBIC).save(shot.shown[0])
        sys.stdout.write(f"$ ldm {shlex.join(shot.words)}\n")
        sys.stdout.flush()
        with contextlib.redirect_stdout(io.StringIO()):
            code = run(shot.words)
        if code:
            return code
    sheet = folder / "contact-sheet.png"
    contact_sheet(made).save(sheet)
    sys.stdout.write(f"All on one sheet: {sheet.resolve()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
