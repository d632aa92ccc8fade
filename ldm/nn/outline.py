"""Modules with names, shapes and types but without numbers, to be filled from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Unset(TorchFunctionMode):
    """Initial values are not set.

    For tensors without numbers torch does that in Python, and imports its compiler first: half of
    all that a process does from its start until a small model is there.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else given["tensor"]
        return func(*args, **given)


@contextmanager
def outline() -> Iterator[None]:
    """Modules made inside have tensors on the device `meta`: no memory, no values."""
    with torch.device("meta"), _Unset():
        yield
