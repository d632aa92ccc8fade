"""Tokenizers and the prompt language."""

from __future__ import annotations
