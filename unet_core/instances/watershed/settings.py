"""What a watershed is made with: asked for, resolved, plain data in the run record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from unet_core.errors import InputError
from unet_core.instances.watershed.criterion import Criterion
from unet_core.instances.watershed.heights import VOXEL, HeightMap

LEVELS = (77, 128, 179)  # of 255: probabilities 0.3, 0.5 and 0.7
RADIUS_PLANAR, RADIUS = 64, 32
# Chosen on halves of dsb2018, bbbc039, bbbc050, DIC-HeLa, fib25 and gala's data, judged on the others; see
# unet_core/DESIGN.md, "Watershed".
PERSISTENCE = {"objects": 0.1, "boundaries": 0.4}
PROMINENCE = 0.1
DEPTH = VOXEL
NODE_BYTES = 44  # of memory for every node of the merge, at most
NODES_MOST = 2**32 - 1  # they are numbered in 32 bits
EDGE_BYTES = 17  # on disk for every pair of labels in the merge
_FINER = 2.0  # blocks merge by a criterion so many times finer: as far down can be merged anew


@dataclass(frozen=True, kw_only=True)
class WatershedPlan:
    """Everything that decides a watershed, beside what all instances have.

    Attributes
    ----------
    boundary
        Classes that objects grow over: between them, but not their inside.
    levels, radius, voxel_size, planar
        See `HeightMap`.
    persistence, prominence, depth
        See `Criterion`.
    finest
        Persistence, prominence and depth by which blocks merge by themselves.
    """

    boundary: tuple[int, ...]
    levels: tuple[int, ...]
    radius: int
    voxel_size: tuple[float, ...]
    planar: bool
    persistence: float
    prominence: float
    depth: int
    finest: tuple[float, float, int]

    @property
    def heights(self) -> HeightMap:
        return HeightMap(
            levels=self.levels, radius=self.radius, voxel_size=self.voxel_size, planar=self.planar
        )

    @property
    def criterion(self) -> Criterion:
        return Criterion(persistence=self.persistence, prominence=self.prominence, depth=self.depth)

    @property
    def simplification(self) -> Criterion:
        """By what blocks merge by themselves."""
        persistence, prominence, depth = self.finest
        return Criterion(persistence=persistence, prominence=prominence, depth=int(depth))

    def with_thresholds(self, *, persistence: float | None, prominence: float | None) -> WatershedPlan:
        """The same heights, merged by other numbers; None leaves one as it is.

        Raises
        ------
        InputError
            Numbers finer than those by which the blocks merged by themselves.
        """
        found = replace(
            self,
            persistence=self.persistence if persistence is None else persistence,
            prominence=self.prominence if prominence is None else prominence,
        )
        if not found.criterion.covers(self.simplification):
            raise InputError(
                "the blocks have already merged more than that",
                where="--persistence, --prominence",
                expected=f"at least {self.finest[0]:g} and {self.finest[1]:g}",
                found=f"{found.persistence:g} and {found.prominence:g}",
                fix="segment anew with the smaller number",
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as JSON gives it back."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WatershedPlan:
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in data.items()}
        return cls(**values)


def plan_watershed(
    *,
    boundary: tuple[int, ...],
    voxel_size: tuple[float, ...],
    planar: bool,
    persistence: float | None = None,
    prominence: float | None = None,
    radius: int | None = None,
) -> WatershedPlan:
    """Resolve what is left open (None) by what the network was trained for.

    Raises
    ------
    InputError
        Numbers out of range.
    """
    kind = "boundaries" if boundary else "objects"
    criterion = Criterion(
        persistence=PERSISTENCE[kind] if persistence is None else persistence,
        prominence=PROMINENCE if prominence is None else prominence,
        depth=DEPTH,
    )
    fine = criterion.finer(_FINER)
    plan = WatershedPlan(
        boundary=boundary,
        levels=LEVELS,
        radius=radius or (RADIUS_PLANAR if planar else RADIUS),
        voxel_size=voxel_size,
        planar=planar,
        persistence=criterion.persistence,
        prominence=criterion.prominence,
        depth=criterion.depth,
        finest=(fine.persistence, fine.prominence, fine.depth),
    )
    _ = plan.heights  # refuses a radius out of range
    return plan
