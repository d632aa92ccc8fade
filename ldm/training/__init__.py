"""Training models: data, losses and the training loop."""

from __future__ import annotations
