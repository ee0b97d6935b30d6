"""A finished label volume that can be asked: what is here, which objects are there, where is this one?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import floor, isfinite, prod
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from unet_core.errors import DataError, InputError
from unet_core.geometry import Box, Grid
from unet_core.ledger import RunRecord, read_record, read_status
from unet_core.query.contacts import contacts
from unet_core.query.expression import parse
from unet_core.query.objects import ObjectTable
from unet_core.volumes import Store, Volume, before_work

# Voxels that are handed out as one array; more goes to a Zarr, piece by piece.
MOST_VOXELS = 2**31


@dataclass(frozen=True)
class Crop:
    """A box of labels (z, y, x), with the image (c, z, y, x) that they were made from, or without."""

    box: Box
    labels: NDArray[Any]
    image: NDArray[Any] | None


class Labels:
    """The output of `unet-flows segment`, opened for queries; local or remote. See `open`.

    Positions, boxes and shapes are z, y, x, in voxels of the whole volume. Only what a query needs is read:
    parts of the object table, and the chunks of the labels that it meets.
    """

    def __init__(self, store: Store, record: RunRecord, volume: Volume, table: ObjectTable | None) -> None:
        self.store = store
        self.volume = volume
        self._record = record
        self._table = table

    @classmethod
    @before_work()
    def open(cls, url: str, *, partial: bool = False) -> Labels:
        """Open the label volume at a path or URL.

        Parameters
        ----------
        partial
            Also what is not complete: blocks that are missing read as background.

        Raises
        ------
        InputError
            No output of `segment`, one that is not complete, or a table of another run.
        """
        store = Store(url)
        record = read_record(store)
        if record is None or record.kind not in ("segment", "stitch"):
            raise InputError(
                "no labels of unet-flows are here",
                where=store.url,
                expected="an output of unet-flows segment",
                found=f"an output of {record.kind}"
                if record
                else "something without a run of unet-flows"
                if store.exists()
                else "nothing",
                fix="check the path",
            )
        if not partial:
            _require_complete(store)
        return cls(store, record, Volume.open(store.url), ObjectTable.open(store, record.fingerprint))

    @property
    def table(self) -> ObjectTable:
        """The object table.

        Raises
        ------
        InputError
            This run made none, or has not come to it.
        """
        if self._table is None:
            raise InputError(
                "these labels have no object table",
                where=f"{self.store.url}/tables",
                expected="an output of unet-flows segment --instances, complete",
                fix="segment once more with --instances components, or finish the run",
            )
        return self._table

    @property
    def has_table(self) -> bool:
        """Whether objects were measured."""
        return self._table is not None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes 0, 1, ..."""
        return tuple(self._record.plan["classes"])

    def info(self) -> dict[str, Any]:
        """What this is: sizes, units, how many objects, which columns."""
        table = self._table
        return {
            "url": self.store.url,
            "run": self._record.fingerprint,
            "status": (read_status(self.store) or {}).get("status", "partial"),
            "shape": list(self.volume.shape),
            "dtype": str(self.volume.dtype),
            "voxel_size": list(self.volume.voxel_size),
            "origin": list(self.volume.origin),
            "unit": self.volume.unit,
            "chunk": list(self.volume.chunk_shape),
            "image": self._record.plan["volume"],
            "classes": list(self.classes),
            "objects": None if table is None else table.count,
            "columns": None if table is None else list(table.columns),
            "units": None if table is None else table.units,
        }

    def at(self, position: Sequence[float], *, physical: bool = False) -> int:
        """The id at a voxel, or at a place in physical units; 0 in the background. Raises as `voxel_at`."""
        voxel = self.voxel_at(position, physical=physical)
        return int(self.volume.read(Box(voxel, tuple(v + 1 for v in voxel))).item())

    def voxel_at(self, position: Sequence[float], *, physical: bool = False) -> tuple[int, ...]:
        """The voxel that holds a place: z, y, x, the nearest centre, which lie at whole numbers of voxels.

        Raises
        ------
        InputError
            A place outside the volume, or another number of coordinates than z, y, x (y, x in a plane).
        """
        size, origin = self.volume.voxel_size, self.volume.origin
        planar = self.volume.shape[0] == 1
        place = tuple(position)
        if planar and len(place) == 2:
            place = (origin[0] if physical else 0.0, *place)
        if len(place) != 3 or not all(map(isfinite, place)):
            raise InputError(
                "a place has one number per axis",
                expected="y,x" if planar else "z,y,x",
                found=",".join(f"{p:g}" for p in place),
            )
        if physical:
            place = tuple((p - o) / s for p, o, s in zip(place, origin, size))
        voxel = tuple(floor(p + 0.5) for p in place)
        box = Box(voxel, tuple(v + 1 for v in voxel))
        if not self.volume.box.contains(box):
            raise InputError(
                "this place lies outside the volume",
                where=self.store.url,
                expected=f"a voxel within {self.volume.box}",
                found=f"voxel {','.join(map(str, voxel))}",
            )
        return voxel

    def object(self, identity: int) -> dict[str, Any]:
        """All measurements of one object.

        Raises
        ------
        InputError
            An id that no object has.
        """
        return dict(self.objects_of([identity]).to_pylist()[0])

    def objects_of(self, ids: Sequence[int] | NDArray[Any]) -> pa.Table:
        """All measurements of some objects, in the order of the ids."""
        return self.table.rows(np.array([int(i) for i in ids], object))  # any integer: refused by its name

    def objects(self, where: str | None = None, *, sort: str = "id", limit: int | None = None) -> pa.Table:
        """Objects that fulfil a condition (see `expression`), ordered by a column, `-` before it: falling.

        Raises
        ------
        InputError
            An expression that cannot be read, a column that is not there, a limit below 0.
        """
        if limit is not None and limit < 0:
            raise InputError("a limit is 0 or more", where="--limit", found=limit)
        return self.table.select(self._condition(where), sort=sort, limit=limit)

    def count(self, where: str | None = None) -> int:
        """How many objects fulfil a condition."""
        return self.table.count if where is None else self.table.matching(self._condition(where))

    def _condition(self, where: str | None) -> pa.compute.Expression | None:
        return None if where is None else parse(where, self.table.schema, self.classes)

    def box(self, box: Box, *, exact: bool = False) -> pa.Table:
        """Which objects are in a box: `id`, and whether they lie in it as a `whole`.

        Parameters
        ----------
        exact
            Read labels wherever an object's bounding box reaches into the box, and leave out those of which
            no voxel does.
        """
        box = self.inside(box)
        found = self.table.overlapping(box)
        if exact:
            there = found["whole"].to_numpy(zero_copy_only=False).copy()
            there[~there] = self._reached(box, found.filter(pa.array(~there)))
            found = found.filter(pa.array(there))
        return found.select(["id", "whole"])

    def _reached(self, box: Box, found: pa.Table) -> NDArray[np.bool_]:
        """Which objects, ordered by id, have a voxel in a box; reads chunks while one is left to be seen."""
        seen = np.zeros(found.num_rows, bool)
        ids = found["id"].to_numpy()
        lower, upper = (
            np.stack([found[f"{axis}{side}"].to_numpy() for axis in "zyx"], axis=-1) for side in (0, 1)
        )
        waiting = np.arange(ids.size)  # the places of those that have not been seen yet
        for cell in Grid(box, self.volume.chunk_shape):
            part = cell.intersect(box)
            if not np.all((lower[waiting] < part.upper) & (upper[waiting] > part.lower), axis=1).any():
                continue
            met = _distinct(self._labels(part))
            places = np.searchsorted(ids, met).clip(max=ids.size - 1)
            seen[places[ids[places] == met]] = True
            waiting = waiting[~seen[waiting]]
            if not waiting.size:
                break
        return seen

    def mask(self, identity: int) -> tuple[Box, NDArray[np.bool_]]:
        """An object's bounding box, and which voxels of it (z, y, x) are the object's.

        Raises
        ------
        InputError
            An id that no object has, a box of more than 2**31 voxels: `mask_parts` goes piece by piece.
        DataError
            The labels do not hold what the table says.
        """
        box = self.box_of(identity)
        require_small(box)
        mask = np.zeros(box.shape, np.bool_)
        for part, inside in self.mask_parts(identity, box):
            mask[part.relative_to(box.lower).slices] = inside
        return box, mask

    def mask_parts(self, identity: int, box: Box) -> Iterator[tuple[Box, NDArray[np.bool_]]]:
        """The pieces of an object's mask, chunk by chunk; `box` is its bounding box. Raises as `mask`."""
        for part, voxels in self.parts(identity, box):
            inside = self._labels(part) == identity
            self.require_voxels(identity, part, voxels, int(inside.sum()))
            yield part, inside

    def require_voxels(self, identity: int, part: Box, expected: int, found: int) -> None:
        """Refuse labels that hold another number of an object's voxels than the table says: DataError."""
        if found != expected:
            raise DataError(
                "the labels do not hold what the object table says",
                where=f"{self.volume.where} [{part}]",
                expected=f"{expected:,} voxels of object {identity}",
                found=f"{found:,}",
                fix="unet-flows verify OUTPUT",
            )

    def parts(self, identity: int, box: Box) -> Iterator[tuple[Box, int]]:
        """The parts of chunks, inside an object's box, that hold voxels of it, and how many."""
        plan = self.table.plan
        counts = Grid(Box.of_shape(plan.volume), plan.chunk).counts
        chunks, voxels = self.table.fragments(identity)
        for place, count in zip(
            np.stack(np.unravel_index(chunks, counts), axis=-1).tolist(), voxels.tolist()
        ):
            lower = tuple(p * c for p, c in zip(place, plan.chunk))
            yield Box(lower, tuple(a + c for a, c in zip(lower, plan.chunk))).intersect(box), count

    def box_of(self, identity: int) -> Box:
        """An object's bounding box."""
        row = self.object(identity)
        return Box(tuple(row[f"{a}0"] for a in "zyx"), tuple(row[f"{a}1"] for a in "zyx"))

    def neighbours(self, identity: int) -> pa.Table:
        """Objects that share voxel faces with one: `id`, `faces`, and their `area` in physical units.

        The largest contact first. Reads the labels around the object, chunk by chunk.
        """
        size = self.volume.voxel_size
        areas = np.array([prod(size) / s for s in size])
        if self.table.plan.planar:
            areas /= size[0]  # lengths, in a plane
        found: list[NDArray[np.uint64]] = []
        for part, _ in self.parts(identity, self.box_of(identity)):
            around = part.grow((1, 1, 1), (1, 1, 1)).intersect(self.volume.box)
            found.append(contacts(self._labels(around), part.relative_to(around.lower), identity))
        pairs = np.concatenate(found)
        ids, index = np.unique(pairs[:, 0], return_inverse=True)
        faces = np.zeros((ids.size, 3), np.int64)
        np.add.at(faces, (index, pairs[:, 1].astype(np.intp)), pairs[:, 2].astype(np.int64))
        area = faces @ areas
        order = np.lexsort((ids, -area))
        return pa.table({"id": ids[order], "faces": faces.sum(axis=1)[order], "area": area[order]})

    def crop(self, box: Box, *, image: bool = True) -> Crop:
        """The labels of a box and the image under them.

        Raises
        ------
        InputError
            A box outside the volume or of more than 2**31 voxels; an image that is no longer there.
        """
        box = self.inside(box)
        require_small(box)
        return Crop(box, self._labels(box), self.image.read(box) if image else None)

    @cached_property
    def image(self) -> Volume:
        """The image that the labels were made from."""
        plan = self._record.plan
        try:
            return Volume.reopen(plan)
        except InputError as error:
            raise InputError(
                "the image that these labels were made from cannot be read",
                where=plan["volume"],
                found=error.problem,
                fix="put it back where it was, or leave it out: --no-image",
            ) from None

    def _labels(self, box: Box) -> NDArray[Any]:
        labels: NDArray[Any] = self.volume.read(box)[0]
        return labels

    def inside(self, box: Box) -> Box:
        """The box with all three axes; InputError where it is not inside the volume."""
        if len(box.lower) == 2 and self.volume.shape[0] == 1:
            box = Box((0, *box.lower), (1, *box.upper))
        if len(box.lower) != 3:
            raise InputError(
                "this box is not inside the volume: it has another number of axes",
                where=self.store.url,
                expected=f"z0:z1,y0:y1,x0:x1 within {self.volume.box}",
                found=box,
            )
        if not box or not self.volume.box.contains(box):
            raise InputError(
                "this box is not inside the volume",
                where=self.store.url,
                expected=f"a box within {self.volume.box}",
                found=box,
            )
        return box


def _distinct(labels: NDArray[Any]) -> NDArray[np.uint64]:
    """The ids in a box: objects are wide, so that few voxels differ from the one before."""
    flat = labels.ravel()
    begins = np.ones(flat.size, bool)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    return np.unique(flat[begins]).astype(np.uint64)


def require_small(box: Box) -> None:
    """Refuse a box that does not go into one array.

    Raises
    ------
    InputError
        More than 2**31 voxels.
    """
    if box.size > MOST_VOXELS:
        raise InputError(
            "this box is too large for one array",
            expected=f"at most {MOST_VOXELS:,} voxels",
            found=f"{box.size:,} in {box}",
            fix="write it to a .zarr: that goes piece by piece",
        )


def _require_complete(store: Store) -> None:
    """Refuse labels whose run has not ended complete; say what is missing."""
    status = (read_status(store) or {}).get("status", "partial")
    if status == "complete":
        return
    from unet_core.verification import RunOnDisk  # with torch: seconds, that only this refusal takes

    run = RunOnDisk.open(store)
    missing = []
    for stage in run.stages:
        done = int(run.ledger(stage.name).read().done.sum())
        if done < stage.count:
            missing.append(f"{stage.name} {stage.count - done:,} of {stage.count:,}")
    raise InputError(
        "these labels are not complete",
        where=store.url,
        expected="status complete",
        found=f"status {status}; blocks missing: {', '.join(missing) or 'none'}",
        fix="give the segment command again: it does only what is missing; or read them as they are with "
        "--partial",
    )
