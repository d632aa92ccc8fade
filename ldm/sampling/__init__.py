"""Noise schedules, denoisers, guidance and samplers, without any weights."""

from __future__ import annotations
