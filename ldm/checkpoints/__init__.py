"""Checkpoint files: formats, keys, families and YAMLs."""

from __future__ import annotations
