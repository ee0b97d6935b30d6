"""What instances are made of and how, as plain data in the run record; and the stages that make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from typing import Any, Literal

from unet_core.errors import InputError
from unet_core.geometry import Box, Shape
from unet_core.instances import kinds
from unet_core.instances.blocking import Blocking, Connectivity
from unet_core.instances.evidence import folder_of, key_of
from unet_core.instances.watershed.settings import WatershedPlan, plan_watershed
from unet_core.ledger import Stage
from unet_core.table import FILES, TablePlan, sums_key

Method = Literal["components", "watershed"]
Connect = Literal["3d", "2d"]

CLASSES, PROBABILITIES, LOCAL, FINAL = "classes/0", "probabilities/0", "local/0", "0"
ENCLOSE, HOLE_SEAMS, FILL = "enclose", "hole-seams", "fill"
TABLE = "table"
LABEL, SEAMS, MERGE, RELABEL = "label", "seams", "merge", "relabel"
_BLOCK = 2**24  # voxels that a block is made of where a shard has fewer
_MOST_CLASSES = 254  # 1 + class is kept in a byte, below `LEFT_OUT`
# Classes that are objects, by what the network was trained for; else all but the first.
_INSIDE = {"boundary": (0,), "interior-boundary": (1,)}
# And classes that lie between them: a watershed grows over these.
_BETWEEN = {"boundary": (1,), "interior-boundary": (2,)}


@dataclass(frozen=True, kw_only=True)
class InstanceRequest:
    """What is asked for; None leaves a choice to the plan.

    Attributes
    ----------
    foreground
        Classes whose voxels are objects; None: what the model's target calls the inside.
    threshold
        Least probability of a foreground class; None: the most likely class decides.
    connect
        "2d" labels every plane by itself.
    min_size
        Voxels of the smallest object that is kept; smaller ones of a watershed join a neighbour.
    persistence, prominence, radius
        Of a watershed alone, see `watershed.Criterion` and `watershed.HeightMap`.
    """

    method: Method = "components"
    foreground: tuple[int, ...] | None = None
    threshold: float | None = None
    connectivity: Connectivity = "face"
    connect: Connect = "3d"
    fill_holes: bool = False
    min_size: int = 1
    persistence: float | None = None
    prominence: float | None = None
    radius: int | None = None

    @property
    def needs_probabilities(self) -> bool:
        """Whether classes alone do not do."""
        return self.threshold is not None or self.method == "watershed"


@dataclass(frozen=True, kw_only=True)
class InstancePlan:
    """Everything that was resolved. Shapes and boxes are z, y, x; see `InstanceRequest` for the rest.

    Attributes
    ----------
    planar
        Nothing touches across z: as asked for, or since there is one plane.
    block
        Whole shards; it decides neither ids nor bytes.
    watershed
        What a watershed is made with; None for other methods.
    source
        The output whose local labels and evidence are merged anew; None: this run makes its own.
    table
        How the objects are measured; None before the run has looked at its input.
    """

    method: Method
    foreground: tuple[int, ...]
    threshold: float | None
    connectivity: Connectivity
    planar: bool
    fill_holes: bool
    min_size: int
    volume: Shape
    roi: Box
    block: Shape
    watershed: WatershedPlan | None = None
    source: str | None = None
    table: TablePlan | None = None

    def to_dict(self) -> dict[str, Any]:
        watershed = None if self.watershed is None else self.watershed.to_dict()
        table = None if self.table is None else self.table.to_dict()
        return {**asdict(self), "roi": str(self.roi), "watershed": watershed, "table": table}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InstancePlan:
        lists = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
        watershed, table = data["watershed"], data["table"]
        return cls(
            **{
                **data,
                **lists,
                "roi": Box.parse(data["roi"]),
                "watershed": None if watershed is None else WatershedPlan.from_dict(watershed),
                "table": None if table is None else TablePlan.from_dict(table),
            }
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the ids, for the run's fingerprint."""
        names = ("method", "foreground", "threshold", "connectivity", "planar", "fill_holes", "min_size")
        values = asdict(self)
        # As JSON gives it back: what is asked for is compared with what a record holds.
        common = {name: list(v) if isinstance(v := values[name], tuple) else v for name in names}
        return common if self.watershed is None else {**common, "watershed": self.watershed.to_dict()}

    @property
    def blocking(self) -> Blocking:
        return Blocking(volume=self.volume, roi=self.roi, block=self.block, planar=self.planar)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages from classes to final ids, in order; only the last two where there is a source."""
        blocking = self.blocking
        blocks = partial(_blocks, blocking)
        # A seam's block reads its neighbours' faces: opened with them, where they are damaged.
        seams = partial(_blocks, blocking, target=partial(_with_neighbours, blocking))
        found: list[Stage] = []
        if self.fill_holes:
            found += [
                blocks(name=ENCLOSE, kinds=(kinds.HOLE_ENCLOSURES, kinds.HOLE_FACES)),
                seams(name=HOLE_SEAMS, kinds=(kinds.HOLE_SEAMS,)),
                _whole(blocking, FILL, (kinds.HOLE_FILLS,)),
            ]
        reach = (0, 0, 0) if self.watershed is None else self.watershed.heights.reach
        margin = tuple(n + (self.watershed is not None) for n in reach)
        found += [
            blocks(name=LABEL, arrays=(LOCAL,), kinds=(kinds.OBJECTS, kinds.FACES), margin=margin),
            seams(name=SEAMS, kinds=(kinds.SEAMS,)),
        ]
        last = (
            _whole(blocking, MERGE, (kinds.IDS, kinds.JOINED, kinds.MERGED)),
            replace(blocks(name=RELABEL, arrays=(FINAL,)), objects=lambda index: (sums_key(index),)),
            replace(_whole(blocking, TABLE), objects=lambda _: FILES),
        )
        return last if self.source is not None else (*found, *last)


def plan_instances(
    request: InstanceRequest,
    *,
    classes: Sequence[str],
    target: str,
    volume: Shape,
    roi: Box,
    shard: Shape,
    block: Shape | None = None,
    voxel_size: tuple[float, ...] = (1.0, 1.0, 1.0),
) -> InstancePlan:
    """Resolve and check what is asked for.

    Parameters
    ----------
    classes, target
        Names of the model's classes, and what it was trained for.
    shard, block
        Shard of the outputs; blocks that were asked for, or None.
    voxel_size
        z, y, x, any unit: distances in a watershed.

    Raises
    ------
    InputError
        Classes that the model does not have, a threshold that is no probability, too many classes, options
        of another method.
    """
    foreground = request.foreground or _INSIDE.get(target) or tuple(range(1, len(classes)))
    unknown = [c for c in foreground if not 0 <= c < len(classes)]
    if unknown or len(set(foreground)) < len(foreground):
        raise InputError(
            "--foreground names a class twice" if not unknown else "this model has no such class",
            expected=", ".join(f"{i} ({name})" for i, name in enumerate(classes)),
            found=", ".join(map(str, unknown or foreground)),
        )
    if max(foreground) >= _MOST_CLASSES:
        raise InputError(
            "too many classes for instances",
            expected=f"foreground classes below {_MOST_CLASSES}",
            found=max(foreground),
        )
    if request.threshold is not None and not 0 < request.threshold <= 1:
        raise InputError(
            "--threshold is not a probability", expected="above 0, at most 1", found=request.threshold
        )
    planar = request.connect == "2d" or roi.shape[0] == 1
    _require_options(request)
    watershed = None
    if request.method == "watershed":
        watershed = plan_watershed(
            boundary=tuple(c for c in _BETWEEN.get(target, ()) if c not in foreground),
            voxel_size=voxel_size,
            planar=planar,
            persistence=request.persistence,
            prominence=request.prominence,
            radius=request.radius,
        )
    return InstancePlan(
        method=request.method,
        foreground=foreground,
        threshold=request.threshold,
        connectivity=request.connectivity,
        planar=planar,
        fill_holes=request.fill_holes,
        min_size=request.min_size,
        volume=volume,
        roi=roi,
        block=block or block_of(shard, volume),
        watershed=watershed,
    )


def _require_options(request: InstanceRequest) -> None:
    """Refuse options that the method does not have."""
    of_watershed = ("persistence", "prominence", "radius")
    if request.method == "components":
        wrong = [name for name in of_watershed if getattr(request, name) is not None]
    else:
        wrong = ["fill_holes"] if request.fill_holes else []
    if wrong:
        raise InputError(
            f"{request.method} takes no such option",
            found=", ".join(f"--{name.replace('_', '-')}" for name in wrong),
            fix="leave it out, or choose another method",
        )


def block_of(shard: Shape, volume: Shape) -> Shape:
    """Whole shards, up to 2**24 voxels where one has fewer, as near to a cube as may be."""
    block = list(shard)
    while open_axes := [axis for axis in range(3) if block[axis] < volume[axis]]:
        shortest = min(open_axes, key=lambda axis: block[axis])
        if 2 * prod(block) > _BLOCK:
            break
        block[shortest] *= 2
    return tuple(block)


def _blocks(
    blocking: Blocking,
    *,
    name: str,
    arrays: tuple[str, ...] = (),
    kinds: tuple[str, ...] = (),
    target: Any = None,
    margin: Shape = (0, 0, 0),
) -> Stage:
    """A stage that does one block after the other."""
    return Stage(
        name=name,
        count=len(blocking),
        arrays=arrays,
        quick=bool(arrays),
        target=target or (lambda index: (0, blocking.box(index))),
        objects=lambda index: [key_of(kind, index) for kind in kinds],
        margin=margin,
    )


def _with_neighbours(blocking: Blocking, index: int) -> tuple[int, Box]:
    return 0, blocking.box(index).grow((1, 1, 1), (1, 1, 1)).intersect(blocking.roi)


def _whole(blocking: Blocking, name: str, kinds: tuple[str, ...] = ()) -> Stage:
    """A stage of one block: the whole volume."""
    return Stage(
        name=name,
        count=1,
        arrays=(),
        target=lambda _: (0, blocking.roi),
        objects=lambda _: [folder_of(kind) for kind in kinds],
    )
