"""One command's work: what is asked for, what exists already, what is generated and written."""

from __future__ import annotations
