"""The command line: words in, exit codes out."""

from __future__ import annotations
