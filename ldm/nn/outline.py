"""Modules with names, shapes and types but without values, to be filled from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Unset(TorchFunctionMode):
    """Skips the initialisation of parameters.

    For tensors without values, torch runs it in Python and imports its compiler first, which is
    half of the time from the start of a process until a small model is loaded.
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
    """Create modules with tensors on the device `meta`: no memory, no values."""
    with torch.device("meta"), _Unset():
        yield
