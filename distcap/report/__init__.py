"""One HTML page, and one table in the terminal, that compare the runs of a folder."""

from distcap.report.page import report

__all__ = ["report"]
