"""Doing what an instance plan says, on stores: one function per stage, each block committed last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.instances import holes, kinds, merging, plan
from unet_core.instances.blocking import complement
from unet_core.instances.components import describe, extent_of, label, renumber
from unet_core.instances.evidence import InStore
from unet_core.instances.faces import Faces, all_contacts, faces_of
from unet_core.instances.foreground import by_class, by_threshold
from unet_core.instances.plan import InstancePlan
from unet_core.instances.watershed import inputs, stages
from unet_core.instances.watershed.settings import WatershedPlan
from unet_core.keeping import LEFT_OUT
from unet_core.ledger import Done, Ledger, digest_of_objects, quick_digest, require_epoch
from unet_core.table import TablePlan, write_sums, write_tables
from unet_core.volumes import Store, Volume, open_for_reading, open_for_writing, read_box, write_box


class InstanceWorker:
    """What a worker keeps between blocks of the instance stages: the plan and the open arrays.

    `image`: what was segmented, for the objects' intensities. `fingerprint`: of the run, for its tables.
    """

    def __init__(self, url: str, plan: InstancePlan, *, image: Volume, fingerprint: str, epoch: int) -> None:
        self._store = Store(url)
        self._source = self._store if plan.source is None else Store(plan.source)
        self._plan, self._epoch = plan, epoch
        self._image, self._fingerprint = image, fingerprint
        self._blocking = plan.blocking
        self._counts = {stage.name: stage.count for stage in plan.stages}

    def do(self, stage: str, index: int) -> Done:
        """One block of a stage, committed. Doing it twice is harmless."""
        require_epoch(self._store, self._epoch)
        evidence = InStore(self._store, self._source, _SOURCED)
        written = _FUNCTIONS[self._plan.method][stage](self, index, evidence)
        digests = dict(evidence.digests)
        if written is not None:
            digests[""] = bytes.fromhex(quick_digest(written))
        digest = digest_of_objects(digests) if evidence.digests or written is None else digests[""].hex()
        Ledger(self._store, stage, self._counts[stage], self._epoch).commit(index, digest)
        whole = self._counts[stage] == 1
        return Done(self._plan.roi.size if whole else self._blocking.box(index).size)

    def _enclose(self, index: int, evidence: InStore) -> None:
        box, values = self._blocking.box(index), self._unfilled(index)
        labels, count = holes.background(values, self._around, planar=self._plan.planar)
        found = holes.enclosures(labels, values, count, box=box, blocking=self._blocking)
        evidence.write(kinds.HOLE_ENCLOSURES, index, found)
        evidence.write(kinds.HOLE_FACES, index, self._faces(index, labels, values))

    def _hole_seams(self, index: int, evidence: InStore) -> None:
        here, there = self._both_sides(index, evidence, kinds.HOLE_FACES)
        found = holes.hole_contacts(here, there, self._around, planar=self._plan.planar)
        evidence.write(kinds.HOLE_SEAMS, index, found)

    def _fill(self, index: int, evidence: InStore) -> None:
        holes.decide(self._blocking, evidence)

    def _label(self, index: int, evidence: InStore) -> NDArray[Any]:
        box, values = self._blocking.box(index), self._values(index, evidence)
        labels, count = label(values, self._plan.connectivity, planar=self._plan.planar)
        found = describe(labels, values, count, box=box, volume=self._plan.volume)
        evidence.write(kinds.OBJECTS, index, found)
        evidence.write(kinds.FACES, index, self._faces(index, labels, values))
        write_box(self._array(plan.LOCAL), box, labels)
        return labels

    def _seams(self, index: int, evidence: InStore) -> None:
        here, there = self._both_sides(index, evidence, kinds.FACES)
        found = all_contacts(here, there, self._plan.connectivity, planar=self._plan.planar)
        evidence.write(kinds.SEAMS, index, found)

    def _merge(self, index: int, evidence: InStore) -> None:
        merging.merge(self._blocking, evidence, min_size=self._plan.min_size)

    def _label_basins(self, index: int, evidence: InStore) -> NDArray[Any]:
        box, own = self._blocking.box(index), self._plan
        heights = inputs.heights_around(
            box,
            own.roi,
            self._watershed,
            own.foreground,
            own.threshold,
            probabilities=lambda part: self._read(plan.PROBABILITIES, part),
            classes=lambda part: self._read(plan.CLASSES, part)[0],
        )
        labels = stages.label(
            heights, self._blocking, index, evidence, self._watershed.simplification, own.connectivity
        )
        write_box(self._array(plan.LOCAL), box, labels)
        return labels

    def _basin_seams(self, index: int, evidence: InStore) -> None:
        stages.seams(self._blocking, index, evidence, self._plan.connectivity)

    def _merge_basins(self, index: int, evidence: InStore) -> None:
        stages.merge_all(self._blocking, evidence, self._watershed.criterion, min_size=self._plan.min_size)

    @property
    def _watershed(self) -> WatershedPlan:
        if self._plan.watershed is None:
            raise RuntimeError(f"a plan of {self._plan.method} has no watershed")
        return self._plan.watershed

    def _relabel(self, index: int, evidence: InStore) -> NDArray[Any]:
        box = self._blocking.box(index)
        local = read_box(self._local, box)[0]
        classes = self._object_classes(local, box, index, evidence)
        target = self._array(plan.FINAL)
        final = renumber(local, kinds.table_of(evidence, index).astype(target.dtype))
        write_box(target, box, final)
        # Measured while the ids are at hand: later all would be read once more. Of the image only what holds
        # objects: whatever a mask leaves out may be damaged, or have cost much to bring.
        part = extent_of(final)
        at = part.slices
        image = self._image.read(part.shift(box.lower))
        sums = self._table.measure(final[at], part.shift(box.lower), image=image, classes=classes[at])
        evidence.digests.update(write_sums(self._store, index, sums))
        return final

    def _object_classes(
        self, local: NDArray[np.uint32], box: Box, index: int, evidence: InStore
    ) -> NDArray[np.uint8]:
        """The class that a block's objects were made of; the network may call a voxel of them background.

        So it is where a hole was filled, a threshold is below one half, or a watershed grew over a boundary.
        """
        foreground = self._plan.foreground
        if self._plan.method == "components":
            value = evidence.read(kinds.OBJECTS, index)["value"]
            return renumber(local, np.concatenate([np.zeros(1, np.uint8), value - np.uint8(1)]))
        if len(foreground) == 1:
            return np.full(local.shape, foreground[0], np.uint8)
        return by_threshold(self._read(plan.PROBABILITIES, box), foreground, 0) - np.uint8(1)

    def _write_table(self, index: int, evidence: InStore) -> None:
        digests = write_tables(
            self._store, self._table, blocks=len(self._blocking), fingerprint=self._fingerprint
        )
        evidence.digests.update(digests)

    @property
    def _table(self) -> TablePlan:
        if self._plan.table is None:
            raise InputError("this plan was never started", where=self._store.url)
        return self._plan.table

    @property
    def _around(self) -> Any:
        return complement(self._plan.connectivity)

    def _values(self, index: int, evidence: InStore) -> NDArray[Any]:
        values = self._unfilled(index)
        if not self._plan.fill_holes:
            return values
        filled = holes.fill(values, evidence, index, self._around, planar=self._plan.planar)
        filled[filled == LEFT_OUT] = 0
        return filled

    def _unfilled(self, index: int) -> NDArray[Any]:
        """1 + class of the foreground, 0 elsewhere, before holes are filled.

        With holes to fill, what a mask leaves out is a value of its own: it is no hole, nor is what touches
        it enclosed by one class, as at the face of the volume.
        """
        box, own = self._blocking.box(index), self._plan
        if own.threshold is None:
            classes = self._read(plan.CLASSES, box)[0]
            values = by_class(classes, own.foreground)
        else:
            values = by_threshold(self._read(plan.PROBABILITIES, box), own.foreground, own.threshold)
            if own.fill_holes:
                classes = self._read(plan.CLASSES, box)[0]
        if own.fill_holes:
            values[classes == LEFT_OUT] = LEFT_OUT
        return values

    def _faces(self, index: int, labels: NDArray[Any], values: NDArray[Any]) -> Faces:
        return faces_of({"labels": labels, "values": values}, self._blocking.inner_sides(index))

    def _both_sides(self, index: int, evidence: InStore, kind: str) -> tuple[Faces, Mapping[int, Faces]]:
        """The faces of a block, and those of its lower neighbours, by offset."""
        around = self._around if kind == kinds.HOLE_FACES else self._plan.connectivity
        there = {
            number: evidence.read(kind, block)
            for number, block in self._blocking.lower_neighbours(index, around)
        }
        return evidence.read(kind, index), there

    def _read(self, path: str, box: Box) -> NDArray[Any]:
        return read_box(open_for_reading(self._source, path), box)

    @cached_property
    def _local(self) -> zarr.Array[Any]:
        return open_for_reading(self._source, plan.LOCAL)

    def _array(self, path: str) -> zarr.Array[Any]:
        return open_for_writing(self._store, path)


_SOURCED = frozenset((kinds.OBJECTS, kinds.SEAMS))
Function = Callable[[InstanceWorker, int, InStore], NDArray[Any] | None]
_SHARED: dict[str, Function] = {
    plan.RELABEL: InstanceWorker._relabel,
    plan.TABLE: InstanceWorker._write_table,
}
_FUNCTIONS: dict[str, dict[str, Function]] = {
    "components": {
        plan.ENCLOSE: InstanceWorker._enclose,
        plan.HOLE_SEAMS: InstanceWorker._hole_seams,
        plan.FILL: InstanceWorker._fill,
        plan.LABEL: InstanceWorker._label,
        plan.SEAMS: InstanceWorker._seams,
        plan.MERGE: InstanceWorker._merge,
        **_SHARED,
    },
    "watershed": {
        plan.LABEL: InstanceWorker._label_basins,
        plan.SEAMS: InstanceWorker._basin_seams,
        plan.MERGE: InstanceWorker._merge_basins,
        **_SHARED,
    },
}
