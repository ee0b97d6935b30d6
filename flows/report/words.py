"""Numbers as people say them."""

from __future__ import annotations


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
