"""What the machine can do at best: matrix products and convolutions, measured."""

from __future__ import annotations

import time
from collections.abc import Callable

# Arithmetic of a run, counted with torch.utils.flop_counter on the networks of v1; a multiplication
# and its addition are two.
FLOPS = {
    "unet": 1.607e12,
    "decode-512": 2.515e12,
    "decode-1024": 10.47e12,
    "text": 0.026e12,
}


def limits(seconds: float = 2.0) -> dict[str, float]:
    """Operations a second in float32 of a large matrix product and of a large convolution."""
    import torch

    with torch.inference_mode():
        a = torch.randn(2048, 2048)
        x = torch.randn(2, 320, 64, 64).to(memory_format=torch.channels_last)
        weight = torch.randn(320, 320, 3, 3).to(memory_format=torch.channels_last)
        return {
            "matrix products": _rate(lambda: a @ a, 2 * 2048.0**3, seconds),
            "convolutions": _rate(
                lambda: torch.nn.functional.conv2d(x, weight, padding=1),
                2 * 2 * 64 * 64 * 320.0 * 320 * 9,
                seconds,
            ),
        }


def _rate(run: Callable[[], object], operations: float, seconds: float) -> float:
    """The best of the runs that there is time for: whatever else runs takes from the others."""
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return operations / best
