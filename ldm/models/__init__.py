"""From a checkpoint to a `Model` in memory."""

from __future__ import annotations
