"""The object table: every object of a label volume measured, once, while its labels are written.

    block's labels, image, classes  ->  TablePlan.measure  ->  Sums  ->  write_sums
    all blocks' sums                ->  write_tables       ->  Parquet

`Sums` add up exactly, so the tables are the same bytes whatever the blocks were.
"""

from unet_core.table.plan import TablePlan, quanta_of, quantum_of
from unet_core.table.sums import Sums
from unet_core.table.writing import (
    FILES,
    FOLDER,
    FORMAT,
    MERGE_MEMORY,
    METADATA,
    SUMMARY,
    sums_key,
    write_sums,
    write_tables,
)

__all__ = [
    "FILES",
    "FOLDER",
    "FORMAT",
    "MERGE_MEMORY",
    "METADATA",
    "SUMMARY",
    "Sums",
    "TablePlan",
    "quanta_of",
    "quantum_of",
    "sums_key",
    "write_sums",
    "write_tables",
]
