"""The report: a run folder becomes a static site that opens from the file system.

``build_report("run")`` writes ``run/report/index.html``, one page a site under
``report/sites/``, pages that draw any mode and any label from records (``report/data``), and the
pictures they show. The pages load nothing from outside, link relatively, and read well on a phone
and on paper; where scripts are off, sites and inputs can be read. The same run folder gives the
same bytes. All but the store is optional; parts that are missing are left out, and the page says
so.

``build_comparison`` makes the page of two runs.

A column of a table is one entry in `tables`, a sentence one function in `sentences`, a figure
one line in `drawing`. A page for a run of another kind comes from its package (`Page`).
"""

from condec.report.build import Page, build_input_page, build_report, size_in_words
from condec.report.comparing import build_comparison

__all__ = ["Page", "build_comparison", "build_input_page", "build_report", "size_in_words"]
