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
from unet_core.ledger import Stage
from unet_core.table import FILES, TablePlan, sums_key

Method = Literal["components"]
Connect = Literal["3d", "2d"]

CLASSES, PROBABILITIES, LOCAL, FINAL = "classes/0", "probabilities/0", "local/0", "0"
ENCLOSE, HOLE_SEAMS, FILL = "enclose", "hole-seams", "fill"
TABLE = "table"
LABEL, SEAMS, MERGE, RELABEL = "label", "seams", "merge", "relabel"
_BLOCK = 2**24  # voxels that a block is made of where a shard has fewer
_MOST_CLASSES = 255
# Classes that are objects, by what the network was trained for; else all but the first.
_INSIDE = {"boundary": (0,), "interior-boundary": (1,)}


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
        Voxels of the smallest object that is kept.
    """

    method: Method = "components"
    foreground: tuple[int, ...] | None = None
    threshold: float | None = None
    connectivity: Connectivity = "face"
    connect: Connect = "3d"
    fill_holes: bool = False
    min_size: int = 1


@dataclass(frozen=True, kw_only=True)
class InstancePlan:
    """Everything that was resolved. Shapes and boxes are z, y, x; see `InstanceRequest` for the rest.

    Attributes
    ----------
    planar
        Nothing touches across z: as asked for, or since there is one plane.
    block
        Whole shards; it decides neither ids nor bytes.
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
    source: str | None = None
    table: TablePlan | None = None

    def to_dict(self) -> dict[str, Any]:
        table = None if self.table is None else self.table.to_dict()
        return {**asdict(self), "roi": str(self.roi), "table": table}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InstancePlan:
        lists = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
        table = None if data["table"] is None else TablePlan.from_dict(data["table"])
        return cls(**{**data, **lists, "roi": Box.parse(data["roi"]), "table": table})

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the ids, for the run's fingerprint."""
        names = ("method", "foreground", "threshold", "connectivity", "planar", "fill_holes", "min_size")
        values = asdict(self)
        # As JSON gives it back: what is asked for is compared with what a record holds.
        return {name: list(v) if isinstance(v := values[name], tuple) else v for name in names}

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
        found += [
            blocks(name=LABEL, arrays=(LOCAL,), kinds=(kinds.OBJECTS, kinds.FACES)),
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
) -> InstancePlan:
    """Resolve and check what is asked for.

    Parameters
    ----------
    classes, target
        Names of the model's classes, and what it was trained for.
    shard, block
        Shard of the outputs; blocks that were asked for, or None.

    Raises
    ------
    InputError
        Classes that the model does not have, a threshold that is no probability, too many classes.
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
    return InstancePlan(
        method=request.method,
        foreground=foreground,
        threshold=request.threshold,
        connectivity=request.connectivity,
        planar=request.connect == "2d" or roi.shape[0] == 1,
        fill_holes=request.fill_holes,
        min_size=request.min_size,
        volume=volume,
        roi=roi,
        block=block or block_of(shard, volume),
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
) -> Stage:
    """A stage that does one block after the other."""
    return Stage(
        name=name,
        count=len(blocking),
        arrays=arrays,
        quick=bool(arrays),
        target=target or (lambda index: (0, blocking.box(index))),
        objects=lambda index: [key_of(kind, index) for kind in kinds],
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
