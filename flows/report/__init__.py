"""What people read: pictures of results, tables for the terminal, artifacts in Prefect."""

from flows.report.objects import write_object_picture
from flows.report.picture import write_picture
from flows.report.tables import comparison_table, instance_tables, scores_table, thresholds_table

__all__ = [
    "comparison_table",
    "instance_tables",
    "scores_table",
    "thresholds_table",
    "write_object_picture",
    "write_picture",
]
