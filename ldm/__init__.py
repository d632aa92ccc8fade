"""Latent diffusion from the shell: the 2022 checkpoints, YAMLs and command lines, kept alive."""

from __future__ import annotations

__version__ = "0.1.0"
