"""What the tests of the demo's figures share: the font's glyphs, and what finds them."""

from __future__ import annotations

import pytest

from benchmarks.retrieval import Finder
from ldm.training.data import GlyphSheet
from tests.emoji_font import EMOJI_FONT


@pytest.fixture(scope="module")
def sheet() -> GlyphSheet:
    return GlyphSheet(EMOJI_FONT)


@pytest.fixture(scope="module")
def finder(sheet: GlyphSheet) -> Finder:
    return Finder(sheet)
