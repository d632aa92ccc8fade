"""The subset of Noto Color Emoji that the tests draw with (tests/data/README.md)."""

from __future__ import annotations

from pathlib import Path

EMOJI_FONT = Path(__file__).parent / "data" / "noto-color-emoji-subset.ttf"
