"""Image files, masks and canvases as arrays."""

from __future__ import annotations
