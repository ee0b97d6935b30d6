"""Numbers as people say them."""

from __future__ import annotations

from collections.abc import Sequence


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever is read best."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"


def counted(number: int, thing: str) -> str:
    """One block, two blocks."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def flop(n: float) -> str:
    """Such as 2.64 TFLOP."""
    return _scaled(n, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def size(n: float) -> str:
    """Such as 675 MB."""
    return _scaled(n, ("B", "kB", "MB", "GB", "TB", "PB"))


def sides(shape: Sequence[int]) -> str:
    """Such as 64×64×64."""
    return "×".join(map(str, shape))


def _scaled(n: float, units: Sequence[str]) -> str:
    *smaller, largest = units
    for unit in smaller:
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.3g} {largest}"
