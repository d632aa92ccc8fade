"""One engine or many workers, on this machine or on a cluster, behind one interface."""

from __future__ import annotations
