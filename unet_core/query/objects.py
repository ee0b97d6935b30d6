"""The object table as queries see it: Parquet files in a store, of which what matters is read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.query.expression import unknown_column
from unet_core.table import FORMAT, METADATA, SUMMARY, TablePlan
from unet_core.volumes import Store, before_work

_FORM = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(
        page_checksum_verification=True, pre_buffer=True
    )
)
_REPAIR = "unet-flows verify OUTPUT --repair, then the command that made it"
# Rows that are fetched one by one; more than this, and reading all columns of all that match is faster.
_FETCHED = 32


class ObjectTable:
    """The measurements of all objects of one label volume, and where their voxels are.

    Files are opened when a query first needs them and stay open; their indices stay in memory, about a
    thousandth of what they hold.

    Raises
    ------
    InputError
        From any query: a file is damaged or gone.
    """

    def __init__(self, store: Store, summary: dict[str, Any]) -> None:
        self._store = store
        self._run: str = summary["run"]
        self._parts: dict[str, list[dict[str, Any]]] = summary["parts"]
        self._open: dict[str, pq.ParquetFile] = {}
        self._fragments: dict[str, ds.ParquetFileFragment] = {}
        self.count: int = summary["objects"]
        self.columns: tuple[str, ...] = tuple(summary["columns"])
        self.plan = TablePlan.from_dict(summary["plan"])

    @classmethod
    @before_work()
    def open(cls, store: Store, run: str) -> ObjectTable | None:
        """The table of the label volume at `store`; None where there is none.

        Raises
        ------
        InputError
            The table is not that of run `run`, or cannot be read.
        """
        data = store.read(SUMMARY)
        if data is None:
            return None
        where = f"{store.url}/{SUMMARY}"
        try:
            summary = json.loads(data)
            table = cls(store, summary)
        except (ValueError, KeyError, TypeError):
            raise InputError("this object table cannot be read", where=where, fix=_REPAIR) from None
        if summary["format"] != FORMAT:
            raise InputError(
                "this object table was made by another version of unet-flows",
                where=where,
                expected=f"format {FORMAT}",
                found=summary["format"],
            )
        _require_run(summary["run"], run, where)
        return table

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return self._file(self._parts["objects"][0]["key"]).schema_arrow.remove_metadata()

    @property
    def units(self) -> dict[str, str | None]:
        """What each column is measured in, None for ids, classes and truth values."""
        length = self.plan.unit or "unit of the voxel size"
        side = 2 if self.plan.planar else 3
        kinds = (
            (r"volume", f"{length}^{side}"),
            (r"voxels|[zyx][01]?", "voxels"),
            (r"blocks", "blocks"),
            (r"[zyx]_physical|axis_\w+", length),
            (r"moment_\w+", f"{length}^2"),
            (r"(mean|std|min|max)_\d+", "intensity"),
        )
        units: dict[str, str | None] = dict.fromkeys(self.columns)
        for kind, unit in kinds:
            units |= dict.fromkeys((name for name in units if re.fullmatch(kind, name)), unit)
        return units

    def rows(self, ids: NDArray[Any]) -> pa.Table:
        """All columns of some objects, in the order of their ids, integers of any type, as given.

        Raises
        ------
        InputError
            An id that no object has.
        """
        unknown = ids[(ids < 1) | (ids > self.count)]
        if unknown.size:
            raise InputError(
                "no such object",
                where=self._store.url,
                expected=f"an id from 1 to {self.count:,}" if self.count else "no id: there are no objects",
                found=int(unknown[0]),
            )
        if not ids.size:
            return self.schema.empty_table()
        places = self._at("lookup", ids.astype(np.uint64) - np.uint64(1))["row"].to_numpy()
        return self._at("objects", places)

    def select(
        self, condition: pa.compute.Expression | None, *, sort: str = "id", limit: int | None = None
    ) -> pa.Table:
        """The objects that fulfil a condition, by id, or by a column: `-volume` has the largest first.

        Equal ones are ordered by id; NaN comes last.

        Raises
        ------
        InputError
            `sort` is no column.
        """
        name, falling = sort.removeprefix("-"), sort.startswith("-")
        if name not in self.columns:
            raise unknown_column(name, self.columns, where="--sort", found=sort)
        if limit is None:
            table = self._scan(condition, list(self.columns))
            return table.take(_ordered(table[name].to_numpy(), table["id"].to_numpy(), falling, None))
        keys = self._scan(condition, ["id"] if name == "id" else ["id", name])
        ids = keys["id"].to_numpy()
        chosen = ids[_ordered(keys[name].to_numpy(), ids, falling, limit)]
        if chosen.size <= _FETCHED:
            return self.rows(chosen)
        last = _among(chosen)
        table = self._scan(last if condition is None else condition & last, list(self.columns))
        found = table["id"].to_numpy()
        order = np.argsort(found)
        return table.take(order[np.searchsorted(found[order], chosen)])

    def matching(self, condition: pa.compute.Expression | None) -> int:
        """How many objects fulfil a condition."""
        parts = self._parts["objects"]
        with self._reading(*_keys(parts)):
            return int(self._dataset(parts).count_rows(filter=condition))

    def overlapping(self, box: Box) -> pa.Table:
        """Objects whose bounding boxes meet a box, by id; whether they are `whole` in it, and their boxes."""
        meets, inside = ds.scalar(True), ds.scalar(True)
        parts = self._parts["objects"]
        for axis, low, high in zip("zyx", box.lower, box.upper):
            meets &= (ds.field(f"{axis}0") < high) & (ds.field(f"{axis}1") > low)
            inside &= (ds.field(f"{axis}0") >= low) & (ds.field(f"{axis}1") <= high)
            parts = [p for p in parts if _reaches(p, f"{axis}0", f"{axis}1", low, high)]
        bounds = {f"{axis}{side}": ds.field(f"{axis}{side}") for side in "01" for axis in "zyx"}
        table = self._scan(meets, {"id": ds.field("id"), "whole": inside, **bounds}, parts)
        return table.sort_by("id")

    def fragments(self, identity: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The chunks of the label array that hold voxels of an object, and how many each."""
        tables = []
        for part in self._parts["fragments"]:
            if _reaches(part, "id", "id", identity - 1, identity + 1):
                low, high = _bounds(self._file(part["key"]))
                groups = np.flatnonzero((low <= identity) & (high >= identity))
                tables.append(self._read(part["key"], groups.tolist()))
        table = pa.concat_tables(tables)
        mine = table["id"].to_numpy() == identity
        return table["chunk"].to_numpy()[mine].astype(np.int64), table["voxels"].to_numpy()[mine].astype(
            np.int64
        )

    def _at(self, name: str, rows: NDArray[Any]) -> pa.Table:
        """The rows at some places of a table, in the order of the places."""
        parts = self._parts[name]
        starts = np.cumsum([0] + [part["rows"] for part in parts])
        file_of = np.searchsorted(starts, rows, side="right") - 1
        tables, places = [], np.empty(rows.size, np.int64)
        taken = 0
        for number in np.unique(file_of):
            key = parts[number]["key"]
            size = self._file(key).metadata.row_group(0).num_rows
            inside = rows.astype(np.int64) - starts[number]
            group_of = np.where(file_of == number, inside // size, -1)
            for group in np.unique(group_of[group_of >= 0]):
                mine = np.flatnonzero(group_of == group)
                tables.append(self._read(key, [int(group)]).take(inside[mine] - group * size))
                places[mine] = np.arange(taken, taken + mine.size)
                taken += mine.size
        return pa.concat_tables(tables).take(places)

    def _read(self, key: str, groups: list[int]) -> pa.Table:
        with self._reading(key):
            return self._file(key).read_row_groups(groups, use_threads=False).replace_schema_metadata()

    def _scan(
        self, condition: pa.compute.Expression | None, columns: Any, parts: list[dict[str, Any]] | None = None
    ) -> pa.Table:
        """The rows of all files, or of some, that fulfil a condition."""
        parts = self._parts["objects"] if parts is None else parts
        dataset = self._dataset(parts)
        with self._reading(*_keys(parts)):
            return dataset.to_table(columns=columns, filter=condition).replace_schema_metadata()

    def _dataset(self, parts: list[dict[str, Any]]) -> ds.Dataset:
        return ds.FileSystemDataset([self._fragment(part["key"]) for part in parts], self.schema, _FORM)

    def _fragment(self, key: str) -> ds.ParquetFileFragment:
        if key not in self._fragments:
            self._file(key)  # of this run?
            with self._reading(key):
                self._fragments[key] = _FORM.make_fragment(self._source(key))
        return self._fragments[key]

    def _file(self, key: str) -> pq.ParquetFile:
        if key not in self._open:
            with self._reading(key):
                file = pq.ParquetFile(self._source(key), pre_buffer=True, page_checksum_verification=True)
            marks = json.loads((file.schema_arrow.metadata or {}).get(METADATA.encode(), b"{}"))
            _require_run(marks.get("run"), self._run, f"{self._store.url}/{key}")
            self._open[key] = file
        return self._open[key]

    def _source(self, key: str) -> pa.NativeFile:
        if self._store.remote:
            return pa.PythonFile(self._store.ranges(key), mode="r")
        return pa.memory_map(f"{self._store.url}/{key}")

    def _is_damaged(self, key: str) -> bool:
        """Arrow reads several files at once, and does not say which one it stumbled over."""
        try:
            with pq.ParquetFile(self._source(key), page_checksum_verification=True) as file:
                for group in range(file.metadata.num_row_groups):
                    file.read_row_group(group)
        except (pa.ArrowException, OSError):
            return True
        return False

    @contextmanager
    def _reading(self, *keys: str) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                "a file of the object table is damaged or gone",
                where=f"{self._store.url}/{next(filter(self._is_damaged, keys), keys[0])}",
                found=str(error).splitlines()[0],
                fix=_REPAIR,
            ) from None


def _keys(parts: list[dict[str, Any]]) -> list[str]:
    return [part["key"] for part in parts]


def _require_run(found: object, expected: str, where: str) -> None:
    if found != expected:
        raise InputError(
            "this table belongs to another run than the labels beside it",
            where=where,
            expected=f"run {expected}",
            found=f"run {found}",
            fix=_REPAIR,
        )


def _reaches(part: dict[str, Any], least: str, most: str, low: int, high: int) -> bool:
    """Whether a file may hold rows with `least` < high and `most` > low."""
    bounds = part["bounds"]
    return bool(bounds) and bounds[least]["min"] < high and bounds[most]["max"] > low


def _bounds(file: pq.ParquetFile) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Least and greatest value of the first column in every row group."""
    metadata = file.metadata
    statistics = [metadata.row_group(i).column(0).statistics for i in range(metadata.num_row_groups)]
    some = [s for s in statistics if s is not None and s.has_min_max]
    return np.array([s.min for s in some], np.uint64), np.array([s.max for s in some], np.uint64)


def _among(ids: NDArray[np.uint64]) -> pa.compute.Expression:
    return ds.field("id").isin(pa.array(ids))


def _ordered(
    values: NDArray[Any], ids: NDArray[np.uint64], falling: bool, limit: int | None
) -> NDArray[np.intp]:
    """Places of the first `limit` in order of values, then ids."""
    if values.dtype.kind in "ub":  # so that they can be negated
        values = values.astype(np.uint64)
        keys = ~values if falling else values
    else:
        keys = -values if falling else values
    places = np.arange(ids.size)
    if limit is not None and limit < ids.size:
        if limit == 0:
            return places[:0]
        # NaN is sorted to the end, by partition as by sort.
        edge = np.partition(keys, limit - 1)[limit - 1]
        if edge == edge:
            places = np.flatnonzero(keys <= edge)
    return places[np.lexsort((ids[places], keys[places]))][:limit]
