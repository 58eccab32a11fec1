"""Results of a study to a page that answers its question: report.html and its Markdown twin."""

from landscape.report.page import write, write_figures

__all__ = ["write", "write_figures"]
