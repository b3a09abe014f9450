"""What came of a run: one page to read and to pass on, and the same in short for the terminal."""

from egkd.report.page import Run, read_run, write_report
from egkd.report.terminal import summary_table

__all__ = ["Run", "read_run", "summary_table", "write_report"]
