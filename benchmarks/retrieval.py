"""Which glyphs does an image show? Template matching that never sees the prompt.

An image is compared with every glyph of the list, composited over the image's own background
colour, at every place and a range of sizes. The score of a match is Dice's coefficient of the two
differences from the background, D (image) and T (template), 2<D,T> / (|D|^2 + |T|^2): 1 if the
image is the template pixel for pixel, 0 if they have nothing in common. Everything in D counts,
so that a right glyph beside a smear scores less than the right glyph alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ldm.training.data import GlyphSheet, Pixels
from ldm.training.glyphs import BACKGROUNDS, GLYPHS, Background, Glyph
from ldm.training.scenes import CANVAS

Floats = NDArray[np.float32]

COARSE = 4  # pixels to a cell of the first search, over all glyphs
FINE = 2  # and of the second one, over the best few
SIZES = (40, 44, 48, 52, 56, 60, 66, 72, 78, 84, 90, 96, 104)
CANDIDATES = 5


@dataclass(frozen=True)
class Match:
    """A glyph found: its score, the top left corner of its image, and the image's sides."""

    glyph: Glyph
    score: float
    x: int
    y: int
    width: int
    height: int

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2

    @property
    def size(self) -> int:
        return max(self.width, self.height)


def border_colour(image: Pixels) -> Floats:
    """The median colour of the outermost two pixels, which glyphs leave free: [3], 0..255."""
    ring = np.ones(image.shape[:2], dtype=bool)
    ring[2:-2, 2:-2] = False
    return np.asarray(np.median(image[ring], axis=0), dtype=np.float32)


def background_of(image: Pixels) -> Background:
    """The named background nearest to the image's border in RGB."""
    colour = border_colour(image)
    return min(BACKGROUNDS, key=lambda b: float(np.square(colour - np.array(b.rgb)).sum()))


def _cells(image: Floats, cell: int) -> Floats:
    """Means of cell x cell pixels: [..., H, W, C] to [..., C, H / cell, W / cell]."""
    height, width, channels = image.shape[-3:]
    blocks = image.reshape(-1, height // cell, cell, width // cell, cell, channels)
    return np.asarray(np.moveaxis(blocks.mean(axis=(2, 4)), -1, 1), dtype=np.float32)


def _difference(image: Pixels) -> tuple[Floats, Floats]:
    """Image less its background, and the background, in units of full white."""
    ground = border_colour(image) / np.float32(255)
    return image.astype(np.float32) / np.float32(255) - ground, ground


class _Templates:
    """Glyphs at given sizes, in the corner of an empty canvas, in frequency space."""

    def __init__(self, sheet: GlyphSheet, wanted: Sequence[tuple[Glyph, int]], cell: int) -> None:
        self._sheet = sheet
        self.wanted = wanted
        self.cell = cell
        side = CANVAS // cell
        planes = np.zeros((len(wanted), CANVAS, CANVAS, 4), dtype=np.float32)
        fits = np.zeros((len(wanted), side, side), dtype=bool)
        for row, (glyph, size) in enumerate(wanted):
            rgba = sheet.rgba(glyph, size).astype(np.float32) / 255
            height, width = rgba.shape[:2]
            planes[row, :height, :width, :3] = rgba[..., :3] * rgba[..., 3:]
            planes[row, :height, :width, 3] = rgba[..., 3]
            fits[row, : side - -(-height // cell) + 1, : side - -(-width // cell) + 1] = True
        cells = _cells(planes, cell)
        self.colour, self.alpha = cells[:, :3], cells[:, 3:]
        self.outside = ~fits
        self.spectrum = np.conj(np.fft.rfft2(cells))

    def scores(self, difference: Floats, background: Floats) -> Floats:
        """Dice's coefficient of each template at each place: [templates, h, w], -1 if outside.

        `difference` [3, h, w] is image minus background in units of full white, as `background`.
        """
        ground = background[:, None, None]
        energy = np.square(self.colour - self.alpha * ground).sum(axis=(1, 2, 3))
        spectrum = np.fft.rfft2(difference)
        over_ground = np.einsum("chw,c->hw", spectrum, background)
        product = np.einsum("nchw,chw->nhw", self.spectrum[:, :3], spectrum)
        product -= self.spectrum[:, 3] * over_ground
        overlap = np.fft.irfft2(product, s=difference.shape[-2:])
        total = energy + np.square(difference).sum() + 1e-6
        dice: Floats = (2 * overlap / total[:, None, None]).astype(np.float32)
        dice[self.outside] = -1
        return dice

    def best(self, difference: Floats, background: Floats) -> list[Match]:
        """The best place and size of every glyph, best glyph first."""
        dice = self.scores(difference, background)
        flat = dice.reshape(len(dice), -1)
        places = flat.argmax(axis=1)
        peaks = flat[np.arange(len(flat)), places]
        found: dict[str, Match] = {}
        for row in np.argsort(-peaks):
            glyph, size = self.wanted[row]
            y, x = divmod(int(places[row]), dice.shape[-1])
            if glyph.char not in found:
                height, width = self._sheet.rgba(glyph, size).shape[:2]
                x, y = x * self.cell, y * self.cell
                found[glyph.char] = Match(glyph, float(peaks[row]), x, y, width, height)
        return list(found.values())


class Finder:
    """Finds glyphs in images [128, 128, 3]; about 3 s to make, then milliseconds an image."""

    def __init__(self, sheet: GlyphSheet, glyphs: Sequence[Glyph] = GLYPHS) -> None:
        self._sheet = sheet
        self._all = _Templates(sheet, [(g, size) for g in glyphs for size in SIZES], COARSE)

    def one(self, image: Pixels) -> Match:
        """The glyph that the whole image is nearest to."""
        return self._search(*_difference(image))

    def two(self, image: Pixels) -> tuple[Match, Match]:
        """The nearest glyphs on the two sides of the emptiest line, upright or level."""
        difference, ground = _difference(image)
        halves, zero = [], np.float32(0)
        for axis in (0, 1):
            cut = emptiest_line(difference, axis)
            side = np.arange(CANVAS) < cut
            first = side[:, None, None] if axis == 0 else side[None, :, None]
            halves.append(
                (
                    self._search(np.where(first, difference, zero), ground),
                    self._search(np.where(first, zero, difference), ground),
                )
            )
        return max(halves, key=lambda pair: pair[0].score + pair[1].score)

    def _search(self, difference: Floats, ground: Floats) -> Match:
        candidates = self._all.best(_cells(difference, COARSE)[0], ground)[:CANDIDATES]
        wanted = [(c.glyph, c.size + step) for c in candidates for step in (-4, 0, 4)]
        fine = _Templates(self._sheet, wanted, FINE)
        return fine.best(_cells(difference, FINE)[0], ground)[0]


def emptiest_line(difference: Floats, axis: int) -> int:
    """Where to cut across `axis` so that least is cut: the middle of the emptiest stretch.

    Only cuts with a twenty-fifth of the energy on either side count; without one, the middle.
    """
    squares = np.square(difference).sum(axis=2)
    energy = np.where(squares > 0.01, squares, 0).sum(axis=1 - axis)  # noise left out
    before = np.cumsum(energy)
    total = before[-1]
    cut = (before > 0.04 * total) & (before < 0.96 * total)
    if not cut.any():
        return CANVAS // 2
    smooth = np.convolve(energy, np.ones(3) / 3, mode="same")
    smooth[~cut] = np.inf
    low = smooth <= smooth.min() + 0.002 * total
    starts = np.flatnonzero(low & ~np.r_[False, low[:-1]])
    ends = np.flatnonzero(low & ~np.r_[low[1:], False])
    widest = np.argmax(ends - starts)
    return int((starts[widest] + ends[widest]) // 2 + 1)


def psnr(images: Pixels, others: Pixels) -> NDArray[np.float64]:
    """Peak signal to noise ratio of each image in dB: [n, H, W, 3] twice to [n]."""
    error = np.square(images.astype(np.float64) - others.astype(np.float64))
    mean = np.maximum(error.reshape(len(error), -1).mean(axis=1), 1e-10)
    return np.asarray(10 * np.log10(255**2 / mean), dtype=np.float64)
