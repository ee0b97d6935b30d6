"""When two hills that meet are one: the rule that everything else carries out.

    height                  higher peak
      |       lower peak       /\\
      |          /\\           /  \\       lower peak - saddle <= max(persistence * lower peak,
      |         /  \\         /    \\                                 prominence * higher peak,
      |        /    \\_______/      \\                                depth): one
      |       /      saddle

`persistence` asks the same of small and of large objects: of distances it says how narrow a neck must be,
compared with the thinner of its two bodies. `prominence` compares with the thicker one, so that the bumps
of a large object are no objects. `depth` is in heights, and takes noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from unet_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """Depths of a saddle below the lower peak up to which it separates nothing; see above.

    Raises
    ------
    InputError
        Persistence or prominence not from 0 to 1, a negative depth.
    """

    persistence: float = 0.0
    prominence: float = 0.0
    depth: int = 0

    def __post_init__(self) -> None:
        for name in ("persistence", "prominence"):
            value = getattr(self, name)
            if not (isfinite(value) and 0 <= value <= 1):
                raise InputError(f"not a {name}", where=f"--{name}", expected="0 to 1", found=value)
        if self.depth < 0:
            raise InputError("not a depth", where="depth", expected="0 or more", found=self.depth)

    def finer(self, factor: float) -> Criterion:
        """With all numbers as many times smaller; what it merges, this one merges, too."""
        return Criterion(
            persistence=self.persistence / factor,
            prominence=self.prominence / factor,
            depth=int(self.depth / factor),
        )

    def covers(self, finer: Criterion) -> bool:
        """Whether no number is smaller than the other's."""
        return (
            self.persistence >= finer.persistence
            and self.prominence >= finer.prominence
            and self.depth >= finer.depth
        )
