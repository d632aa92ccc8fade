"""Noise schedules, denoisers, guidance and samplers; nothing here holds weights."""

from __future__ import annotations
