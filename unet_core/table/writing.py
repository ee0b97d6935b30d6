"""The `table` stage: partial sums of all blocks to Parquet, in bounded memory.

    tables/sums/GROUP/BLOCK          partial sums, written with the final labels of a block
    tables/objects/ROW.parquet       one row per object, in Morton order of their boxes' middles
    tables/lookup/ROW.parquet        the row of object 1, 2, 3, ...
    tables/fragments/ROW.parquet     id, chunk, voxels; ordered by id, then chunk
    tables/summary.json              of which run, how many rows, which files; written last

Neighbours in space are neighbours in the table, so the statistics of row groups tell a box query which few
it has to read. All files are the same bytes whatever the blocks were.

`tables` is a Zarr array node without data, as the folder of run records is, and for the same reason.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unet_core.errors import DataError
from unet_core.geometry import Box, Grid
from unet_core.ledger import object_digest
from unet_core.table.columns import finished
from unet_core.table.layout import FRAGMENT
from unet_core.table.merging import Rows, Runs, together
from unet_core.table.parquet import PartWriter
from unet_core.table.plan import TablePlan
from unet_core.table.sums import Sums, merged_fragments, merged_rows
from unet_core.volumes import Store, create_records_node

FOLDER = "tables"
SUMMARY = f"{FOLDER}/summary.json"
FORMAT = 1
METADATA = "unet-flows"

# Rows per row group: what one object costs to read, against how often a column is begun anew.
OBJECT_GROUP, LOOKUP_GROUP, FRAGMENT_GROUP = 2**14, 2**16, 2**15
_OBJECT_FILE, _OTHER_FILE = 2**18, 2**22
MERGE_MEMORY = 2**29  # bytes
_KEPT_TOGETHER = 4096  # sums in one folder: parallel file systems dislike large ones
_READERS = 8
_NAMES = ("objects", "lookup", "fragments")
FILES = (*(f"{FOLDER}/{name}/" for name in _NAMES), SUMMARY)
_BITS = 21  # of each coordinate in a Morton key


def sums_key(index: int) -> str:
    """Where the partial sums of block `index` lie."""
    return f"{FOLDER}/sums/{index // _KEPT_TOGETHER:06d}/{index:08d}"


def write_sums(store: Store, index: int, sums: Sums) -> dict[str, bytes]:
    """Keep the partial sums of one block; returns the digest of the object. Doing it twice is harmless."""
    key, data = sums_key(index), sums.to_bytes()
    store.write(key, data)
    return {key: object_digest(data)}


def write_tables(
    store: Store, plan: TablePlan, *, blocks: int, fingerprint: str, memory: int = MERGE_MEMORY
) -> dict[str, bytes]:
    """Merge the partial sums of blocks 0 to `blocks` - 1 and write the tables; returns the files' digests.

    Parameters
    ----------
    fingerprint
        Of the run: a table of another run is refused by those who read it.
    memory
        About how many bytes the merge may take, beside the sums of one block. What does not fit goes through
        temporary files.

    Raises
    ------
    DataError
        The sums of a block are missing or damaged, or ids are not 1 to N.
    """
    create_records_node(store, FOLDER, holds="tables of objects; no image data")
    metadata = {METADATA: json.dumps({"format": FORMAT, "run": fingerprint})}

    def writer(name: str, group: int, file: int, bounds: Sequence[str] = ()) -> PartWriter:
        return PartWriter(store, f"{FOLDER}/{name}", group=group, file=file, metadata=metadata, bounds=bounds)

    objects = writer(
        "objects", OBJECT_GROUP, _OBJECT_FILE, [f"{axis}{side}" for side in "01" for axis in "zyx"]
    )
    lookup = writer("lookup", LOOKUP_GROUP, _OTHER_FILE)
    fragments = writer("fragments", FRAGMENT_GROUP, _OTHER_FILE, ["id"])
    objects.add(_table(finished(np.zeros(0, plan.layout), np.zeros(0, np.uint32), plan)))
    fragments.add(_table(np.zeros(0, FRAGMENT)))
    with tempfile.TemporaryDirectory(prefix="unet-flows-table-") as temporary:
        folder = Path(temporary)
        rows = Runs(folder / "rows", key="id", ordered=merged_rows, memory=memory // 8)
        pieces = Runs(folder / "pieces", key="id", ordered=merged_fragments, memory=memory // 16)
        for sums in _all_sums(store, blocks):
            rows.add(sums.rows)
            pieces.add(sums.fragments)
        measured = Runs(folder / "measured", key="morton", ordered=_by_morton, memory=memory // 8)
        count = 0
        for part, of_part in together([rows.sealed(), pieces.sealed()]):
            count = _require_dense(part, of_part, count, store)
            values = finished(part, _shards_met(of_part, part["id"], plan), plan)
            measured.add(_with_morton(values, plan))
            fragments.add(_table(of_part))
        kind = np.dtype(np.uint32 if count < 2**32 else np.uint64)
        lookup.add(pa.table({"row": np.zeros(0, kind)}))
        place = np.lib.format.open_memmap(
            folder / "lookup.npy", mode="w+", dtype=kind, shape=(max(count, 1),)
        )
        row = 0
        for (part,) in together([measured.sealed()]):
            objects.add(_table(part, plan.columns))
            place[part["id"] - np.uint64(1)] = np.arange(row, row + part.size, dtype=kind)
            row += part.size
        for start in range(0, count, LOOKUP_GROUP):
            lookup.add(pa.table({"row": np.array(place[start : min(start + LOOKUP_GROUP, count)])}))
        del place
    written = (objects, lookup, fragments)
    for one in written:
        one.close()
    summary = {
        "format": FORMAT,
        "run": fingerprint,
        "plan": plan.to_dict(),
        "objects": count,
        "columns": list(plan.columns),
        "parts": {name: one.parts for name, one in zip(_NAMES, written)},
    }
    data = json.dumps(summary, indent=1).encode()
    store.write(SUMMARY, data)
    digests = {SUMMARY: object_digest(data)} | {k: d for one in written for k, d in one.digests.items()}
    # What an attempt under other numbers left; never before: a late second attempt writes the same bytes
    # again, and whoever reads meanwhile finds a whole table.
    there = (key for name in _NAMES for key in store.keys(f"{FOLDER}/{name}"))
    store.delete(key for key in there if key not in digests)
    return digests


def _all_sums(store: Store, blocks: int) -> Iterator[Sums]:
    """The sums of all blocks, in order; some are fetched ahead, and stay compressed until their turn."""
    indices = iter(range(blocks))
    with ThreadPoolExecutor(_READERS) as pool:
        while some := list(islice(indices, _READERS)):
            for index, data in zip(some, pool.map(lambda index: store.read(sums_key(index)), some)):
                where = f"{store.url}/{sums_key(index)}"
                if data is None:
                    raise DataError(
                        "the partial sums of a block are missing",
                        where=where,
                        fix="unet-flows verify OUTPUT --repair, then the command that made it",
                    )
                yield Sums.from_bytes(data, where=where)


def _require_dense(rows: Rows, pieces: Rows, before: int, store: Store) -> int:
    """Ids are 1 to N, and have fragments: else the sums are not of one label volume. Returns the last id."""
    expected = np.arange(before + 1, before + 1 + rows.size, dtype=np.uint64)
    if not np.array_equal(rows["id"], expected) or not np.array_equal(np.unique(pieces["id"]), expected):
        strange = np.flatnonzero(rows["id"] != expected)
        raise DataError(
            "these objects are not those of one finished label volume",
            where=f"{store.url}/{FOLDER}/sums",
            expected="ids 1, 2, 3, ... without gaps",
            found=f"id {rows['id'][strange[0]]} after {expected[strange[0]] - 1}" if strange.size else None,
        )
    return before + rows.size


def _shards_met(pieces: Rows, ids: NDArray[np.uint64], plan: TablePlan) -> NDArray[np.uint32]:
    """For each of the ordered ids, how many shards hold voxels of it. `pieces` are ordered by id, too."""
    counts = Grid(Box.of_shape(plan.volume), plan.chunk).counts
    shard = np.zeros(pieces.size, np.uint64)
    for position, chunk, size in zip(
        np.unravel_index(pieces["chunk"].astype(np.int64), counts), plan.chunk, plan.shard
    ):
        shard = shard * np.uint64(2**21) + (position * chunk // size).astype(np.uint64)
    order = np.lexsort((shard, pieces["id"]))
    owner, shard = pieces["id"][order], shard[order]
    new = np.ones(order.size, bool)
    new[1:] = (owner[1:] != owner[:-1]) | (shard[1:] != shard[:-1])
    return np.add.reduceat(new, np.searchsorted(owner, ids), dtype=np.uint32)


def _with_morton(values: Rows, plan: TablePlan) -> Rows:
    """The rows with a Morton key before them: the bits of z, y, x of the boxes' middles, interleaved."""
    keyed = np.empty(
        values.size, np.dtype([("morton", "<u8"), *((n, values.dtype[n]) for n in plan.columns)])
    )
    excess = max(0, max(plan.volume).bit_length() - _BITS)
    morton = np.zeros(values.size, np.uint64)
    for place, axis in enumerate("xyz"):
        middle = (values[f"{axis}0"].astype(np.int64) + values[f"{axis}1"]).astype(np.uint64)
        middle >>= np.uint64(1 + excess)
        for bit in range(_BITS):
            morton |= (middle >> np.uint64(bit) & np.uint64(1)) << np.uint64(3 * bit + place)
    keyed["morton"] = morton
    for name in plan.columns:
        keyed[name] = values[name]
    return keyed


def _by_morton(rows: Rows) -> Rows:
    return rows[np.lexsort((rows["id"], rows["morton"]))]


def _table(rows: Rows, columns: Sequence[str] | None = None) -> pa.Table:
    return pa.table({name: np.ascontiguousarray(rows[name]) for name in columns or rows.dtype.names or ()})
