"""What a checkpoint file is and holds: formats, keys, families, YAMLs."""

from __future__ import annotations
