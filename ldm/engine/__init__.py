"""The one driver: a job and a model in, images out."""

from __future__ import annotations
