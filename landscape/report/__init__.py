"""Results of a study to a page that answers its question: report.html and its Markdown twin."""

from landscape.report.page import write
from landscape.report.paper import Choice, write_figures

__all__ = ["Choice", "write", "write_figures"]
