"""Parquet in a store: many files of many row groups, the same bytes however the rows arrive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unet_core.ledger import object_digest
from unet_core.volumes import Store

_SPLIT = (pa.float64(), pa.uint64(), pa.int32(), pa.uint32())


class PartWriter:
    """Writes one table as `FOLDER/NUMBER.parquet`, NUMBER being the number of its first row.

    Parameters
    ----------
    group, file
        Rows of a row group, and of a file: whole row groups. What a query has to read, and what one has to
        hold in memory here.
    metadata
        Goes into every file's schema.
    bounds
        Columns whose least and greatest value in every file `parts` are to tell.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        *,
        group: int,
        file: int,
        metadata: Mapping[str, str],
        bounds: Sequence[str] = (),
    ) -> None:
        self._store = store
        self._folder = folder
        self._group = group
        self._file = file
        self._metadata = dict(metadata)
        self._bounds = tuple(bounds)
        self._waiting: list[pa.Table] = []
        self._rows = 0
        self._written = 0
        self.parts: list[dict[str, Any]] = []
        self.digests: dict[str, bytes] = {}

    def add(self, table: pa.Table) -> None:
        """Append rows."""
        self._waiting.append(table)
        self._rows += table.num_rows
        while self._rows >= self._file:
            self._flush(self._file)

    def close(self) -> int:
        """Write what is left; returns the number of all rows. A table without rows has one file."""
        if self._rows or not self.parts:
            self._flush(self._rows)
        return self._written

    def _flush(self, count: int) -> None:
        table = pa.concat_tables(self._waiting).combine_chunks()
        self._waiting, self._rows = [table.slice(count)], table.num_rows - count
        part = table.slice(0, count).replace_schema_metadata(self._metadata)
        buffer = pa.BufferOutputStream()
        pq.write_table(
            part,
            buffer,
            row_group_size=self._group,
            compression="zstd",
            compression_level=1,
            # Measurements hardly repeat: a dictionary of them is larger than they are.
            use_dictionary=False,
            # First bytes beside first bytes: compresses as well, and is read in two thirds of the time.
            column_encoding={f.name: "BYTE_STREAM_SPLIT" for f in part.schema if f.type in _SPLIT},
            write_page_checksum=True,
            data_page_size=2**24,
        )
        data = buffer.getvalue().to_pybytes()
        key = f"{self._folder}/{self._written:012d}.parquet"
        self._store.write(key, data)
        self.digests[key] = object_digest(data)
        bounds = {name: pc.min_max(part[name]).as_py() for name in self._bounds if count}
        self.parts.append({"key": key, "rows": count, "bounds": bounds})
        self._written += count
