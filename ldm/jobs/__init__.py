"""Jobs: their fields, files and records; no torch."""

from __future__ import annotations
