"""Images of captioned scenes, rendered on the fly: the training data of the bundled model.

Only rendering needs the font. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ldm.errors import UsageError
from ldm.jobs.options import nearest
from ldm.training.glyphs import GLYPHS, Glyph, Split
from ldm.training.scenes import CANVAS, Placed, Scene, all_captions_vocabulary, glyph_layout, scene

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
_FONT_SIZE = 109  # the only size of the font's bitmaps: 136x128 pixels each

Pixels = NDArray[np.uint8]


class GlyphSheet:
    """The font's glyphs as trimmed RGBA images, and scaled copies of them, each rendered once.

    Raises UsageError if the font is missing or is not the expected bitmap font.
    """

    def __init__(self, font: Path | str = FONT) -> None:
        if not Path(font).is_file():
            raise UsageError(
                f"{font}: no such font; install the Debian package fonts-noto-color-emoji "
                "or name the file NotoColorEmoji.ttf in data.params.font"
            )
        try:
            self._font = ImageFont.truetype(str(font), _FONT_SIZE)
        except OSError as error:
            raise UsageError(f"{font}: not a font with colour bitmaps ({error})") from error
        self._full: dict[str, Image.Image] = {}
        self._scaled: dict[tuple[str, int], Pixels] = {}

    def full(self, glyph: Glyph) -> Image.Image:
        """The glyph at the font's own size, trimmed to its visible part."""
        if glyph.char not in self._full:
            image = Image.new("RGBA", (160, 160))
            ImageDraw.Draw(image).text((8, 8), glyph.char, font=self._font, embedded_color=True)
            box = image.getchannel("A").getbbox()
            if box is None:
                raise UsageError(f"the font has no image for {glyph.name!r} ({glyph.char})")
            self._full[glyph.char] = image.crop(box)
        return self._full[glyph.char]

    def rgba(self, glyph: Glyph, size: int) -> Pixels:
        """The glyph with its longer side `size` pixels long: [h, w, 4], not premultiplied."""
        key = (glyph.char, size)
        if key not in self._scaled:
            full = self.full(glyph)
            scale = size / max(full.size)
            width, height = (max(1, round(side * scale)) for side in full.size)
            scaled = full.resize((width, height), Image.Resampling.LANCZOS)
            self._scaled[key] = np.asarray(scaled, dtype=np.uint8)
        return self._scaled[key]


def box(placed: Placed, sheet: GlyphSheet, size: int = CANVAS) -> tuple[int, int, Pixels]:
    """A glyph on a canvas of `size` pixels: (left, top, RGBA [h, w, 4])."""
    side = round(placed.size * size / CANVAS)
    rgba = sheet.rgba(placed.glyph, side)
    left = round(placed.x * size / CANVAS) + (side - rgba.shape[1]) // 2
    top = round(placed.y * size / CANVAS) + (side - rgba.shape[0]) // 2
    return left, top, rgba


def composite(canvas: Pixels, left: int, top: int, rgba: Pixels) -> None:
    """Composite an RGBA image over a part of the canvas [H, W, 3], in place."""
    height, width = rgba.shape[:2]
    under = canvas[top : top + height, left : left + width]
    alpha = rgba[..., 3:].astype(np.uint32)
    mixed = (rgba[..., :3] * alpha + under * (255 - alpha) + 127) // 255
    under[...] = mixed.astype(np.uint8)


def render(what: Scene, sheet: GlyphSheet, size: int = CANVAS) -> Pixels:
    """Render a scene: uint8 [size, size, 3]."""
    canvas = np.empty((size, size, 3), dtype=np.uint8)
    canvas[...] = what.background.rgb
    for placed in what.glyphs:
        composite(canvas, *box(placed, sheet, size))
    return canvas


def layers(what: Scene, sheet: GlyphSheet, size: int = CANVAS) -> NDArray[np.uint8]:
    """The glyph visible at each pixel: [size, size], 0 the background, then 1, 2 back to front."""
    plane = np.zeros((size, size), dtype=np.uint8)
    for number, placed in enumerate(what.glyphs, start=1):
        left, top, rgba = box(placed, sheet, size)
        part = plane[top : top + rgba.shape[0], left : left + rgba.shape[1]]
        part[rgba[..., 3] >= 128] = number
    return plane


class Scenes:
    """An endless, numbered sequence of images and captions (YAML target `ldm.data.Scenes`)."""

    def __init__(
        self,
        font: Path | str = FONT,
        size: int = CANVAS,
        seed: int = 0,
        two_glyphs: float = 0.35,
        split: Split = "train",
        glyphs: Sequence[str] | None = None,
        spread: float = 1.0,
    ) -> None:
        if size < 16:
            raise UsageError(f"data: size {size} is too small; use 64 or more")
        if not 0 <= two_glyphs <= 1:
            raise UsageError(f"data: two_glyphs must be 0 to 1, not {two_glyphs}")
        if not 0 <= spread <= 1:
            raise UsageError(f"data: spread must be 0 to 1, not {spread}")
        self.sheet = GlyphSheet(font)
        self.size = size
        self.seed = seed
        self.two_glyphs = two_glyphs
        self.glyphs = named_glyphs(glyphs)
        self.split: Split = split
        self.spread = spread

    def scene(self, index: int) -> Scene:
        """The scene of a number."""
        return scene(self.seed, index, self.split, self.two_glyphs, self.glyphs, self.spread)

    def __getitem__(self, index: int) -> tuple[Pixels, str]:
        what = self.scene(index)
        return render(what, self.sheet, self.size), what.caption

    def vocabulary(self) -> Iterator[str]:
        """Captions that contain every possible word."""
        return all_captions_vocabulary(self.glyphs)

    def batch(self, start: int, n: int) -> tuple[Pixels, list[str]]:
        """Scenes start .. start + n - 1: (uint8 [n, size, size, 3], captions)."""
        images = np.empty((n, self.size, self.size, 3), dtype=np.uint8)
        captions = []
        for row in range(n):
            images[row], caption = self[start + row]
            captions.append(caption)
        return images, captions

    def layers(self, start: int, n: int) -> NDArray[np.uint8]:
        """The glyph at each pixel of scenes start .. start + n - 1: uint8 [n, size, size]."""
        scenes = (self.scene(start + row) for row in range(n))
        return np.stack([layers(what, self.sheet, self.size) for what in scenes])

    def layouts(self, start: int, n: int, cells: int) -> NDArray[np.int64]:
        """The kind of glyph in each cell of scenes start .. start + n - 1: [n, cells, cells]."""
        return np.stack([glyph_layout(self.scene(start + row), cells) for row in range(n)])

    @property
    def kinds(self) -> int:
        """The number of kinds of a cell: one per glyph, and the last for none."""
        return len(GLYPHS) + 1


def named_glyphs(names: Sequence[str] | None) -> tuple[Glyph, ...]:
    """Glyphs by name, or all; raises UsageError for an unknown name, or fewer than two glyphs."""
    if names is None:
        return GLYPHS
    by_name = {glyph.name: glyph for glyph in GLYPHS}
    for name in names:
        if name not in by_name:
            raise UsageError(f"data: no glyph is called {name!r}{nearest(str(name), by_name)}")
    if len(set(names)) < 2:
        raise UsageError("data: glyphs must name two or more")
    return tuple(by_name[name] for name in names)
