"""The seed of each image in a run: counted up, or from a list such as `1,2,5-9`."""

from __future__ import annotations

from collections.abc import Sequence

from ldm.errors import JobError

MAX_SEED = 2**64 - 1
MOST_SEEDS = 10_000


def counted(first: int, step: int, count: int) -> tuple[int, ...]:
    """`count` seeds from `first` on, `step` apart; they wrap to 0 after the largest."""
    return tuple((first + step * place) % (MAX_SEED + 1) for place in range(count))


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse a list of seeds and ranges, in its order; raises JobError."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        numbers = [first, last if dash else first]
        if not all(word.isascii() and word.isdigit() and len(word) <= 20 for word in numbers):
            raise JobError(f"--seeds {text}: {part.strip()!r} is not a seed; write it as 1,2,5-9")
        low, high = map(int, numbers)
        if not low <= high <= MAX_SEED:
            raise JobError(f"--seeds {text}: {part.strip()} counts down, or exceeds {MAX_SEED}")
        if len(seeds) + high - low >= MOST_SEEDS:
            raise JobError(f"--seeds {text}: more than {MOST_SEEDS} seeds")
        seeds += range(low, high + 1)
    return tuple(seeds)


def written(seeds: Sequence[int]) -> str:
    """Write seeds as a list without ranges."""
    return ",".join(map(str, seeds))
