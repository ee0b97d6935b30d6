"""A finished or unfinished run looked at from disk alone: its stages, its blocks, what is damaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from unet_core import ingestion, segmentation, training
from unet_core.errors import DataError, InputError
from unet_core.geometry import Box
from unet_core.instances import stitching
from unet_core.ledger import (
    Done,
    Flags,
    Ledger,
    RunRecord,
    Stage,
    digest_of,
    digest_of_objects,
    object_digest,
    quick_digest,
    read_record,
)
from unet_core.volumes import Store, before_work, open_for_reading, read_box

# Damaged blocks that are traced to the later blocks they went into; with more, all later blocks are redone.
_TRACED = 100


@dataclass(frozen=True)
class RunOnDisk:
    """The run that made, or is making, an output."""

    store: Store
    record: RunRecord

    @classmethod
    @before_work()
    def open(cls, store: Store) -> RunOnDisk:
        """The run at `store`.

        Raises
        ------
        InputError
            Nothing there, nothing of ours, or a record that cannot be read.
        """
        record = read_record(store)
        if record is None:
            raise InputError(
                "no run of unet-flows is here",
                where=store.url,
                expected="an output of unet-flows ingest, train or segment",
                found="no run record there" if store.exists() else "nothing",
                fix="check the path",
            )
        return cls(store, record)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Its stages, in order."""
        return stages_of(self.record)

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def ledger(self, name: str, *, epoch: int = 0) -> Ledger:
        return Ledger(self.store, name, self.stage(name).count, epoch)


def stages_of(record: RunRecord) -> tuple[Stage, ...]:
    """The stages of a run, from its record.

    Raises
    ------
    InputError
        A kind of run that this version does not know.
    """
    plan = dict(record.plan)
    try:
        if record.kind == segmentation.KIND:
            return segmentation.SegmentPlan.from_dict(plan).stages
        if record.kind == stitching.KIND:
            return stitching.StitchPlan.from_dict(plan).stages
        if record.kind == ingestion.KIND:
            return ingestion.IngestPlan.from_dict(plan["ingest"]).stages
        if record.kind == training.KIND:
            return ()  # steps follow one another: what is done is a checkpoint, not a ledger's
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("this run record cannot be read", found=f"{type(error).__name__}: {error}") from None
    raise InputError(
        "this kind of run is not known",
        expected=f"{segmentation.KIND}, {stitching.KIND}, {ingestion.KIND} or {training.KIND}",
        found=record.kind,
        fix="use the version of unet-flows that made it",
    )


def verify_block(store: Store, stage: Stage, index: int, digest: str) -> Done:
    """Read what one finished block wrote, arrays and objects; every checksum is checked on the way.

    Raises
    ------
    DataError
        A chunk that does not decode, or voxels other than those that were committed: damaged, lost
        (a machine that lost power may keep a ledger entry without its data), or written by someone else.
    """
    timepoint, box = stage.target(index)
    arrays = [open_for_reading(store, path) for path in stage.arrays]
    data = [read_box(array, box, timepoint=timepoint) for array in arrays]
    found = quick_digest(data[0]) if stage.quick else digest_of(*data)
    digests = {key: object_digest(store.read(key) or b"") for key in _objects(store, stage, index)}
    if digests:
        found = digest_of_objects({"": bytes.fromhex(found), **digests} if arrays else digests)
    if found != digest:
        raise DataError(
            f"the stored {'voxels' if arrays else 'objects'} are not those that were committed",
            where=f"{store.url}/{stage.arrays[0]} [{box}]" if arrays else f"{store.url}, block {index}",
            expected=f"digest {digest}",
            found=found,
            fix="unet-flows verify OUTPUT --repair, then the command that made it",
        )
    return Done(box.size)


def _objects(store: Store, stage: Stage, index: int) -> Iterator[str]:
    """Keys of a block's objects, those of whole folders listed."""
    for key in stage.objects(index):
        if key.endswith("/"):
            yield from store.keys(key.rstrip("/"))
        else:
            yield key


def reopen(run: RunOnDisk, damaged: Mapping[str, Flags], *, epoch: int) -> dict[str, int]:
    """Take damaged blocks, and the blocks of later stages that were made from them, out of the ledgers.

    Returns how many blocks of each stage are open now that were not before. The caller holds the lease.
    """
    extents: list[tuple[int, Box]] = []
    opened: dict[str, Flags] = {}
    for stage in run.stages:
        done = run.ledger(stage.name).read().done
        broken = damaged.get(stage.name, Flags(stage.count))
        if len(extents) > _TRACED:
            again = done
        else:
            of_damaged = tuple(extents)
            again = Flags.of(
                stage.count,
                (i for i in done.indices() if broken[i] or (of_damaged and _meets(stage, i, of_damaged))),
            )
        if again.any():
            opened[stage.name] = again
            room = _TRACED + 1 - len(extents)
            extents += [stage.extent(index) for index in islice(again.indices(), max(0, room))]
    # The last stage first: killed half-way, nothing made from a hole counts as done.
    for name in reversed(opened):
        run.ledger(name, epoch=epoch).seal(without=opened[name])
    return {name: flags.sum() for name, flags in opened.items()}


def missing_arrays(store: Store, stage: Stage) -> list[str]:
    """Paths of the stage's arrays that are not there at all."""
    return [path for path in stage.arrays if store.read(f"{path}/zarr.json") is None]


def _meets(stage: Stage, index: int, extents: Sequence[tuple[int, Box]]) -> bool:
    timepoint, box = stage.extent(index)
    seen = box.grow(stage.margin, stage.margin)
    return any(t == timepoint and seen.intersect(other) for t, other in extents)
