"""The networks; their attribute names are the keys of the original checkpoints."""

from __future__ import annotations
