"""Results of a study to a page that answers its question: report.html and its Markdown twin."""

from landscape.report.compare import compare
from landscape.report.diagnose import diagnose
from landscape.report.page import write
from landscape.report.paper import Choice, write_figures
from landscape.report.study import Study

__all__ = ["Choice", "Study", "compare", "diagnose", "write", "write_figures"]
