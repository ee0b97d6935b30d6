"""What people read: the picture of a result, and tables for the terminal."""

from flows.report.picture import write_picture
from flows.report.tables import comparison_table, scores_table

__all__ = ["comparison_table", "scores_table", "write_picture"]
