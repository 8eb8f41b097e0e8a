"""The report: a run folder becomes a static site that opens from the file system.

``build_report("run")`` writes ``run/report/index.html``, one page a site under
``report/sites/``, and the pictures they show. The pages load nothing from outside, link
relatively, read well on a phone and on paper, and lack nothing but comforts (sorting,
filtering) where scripts are off. The same run folder gives the same bytes. All but the store
is optional; parts that are missing are left out, and the page says so.

A column of a table is one entry in `tables`, a sentence one function in `sentences`, a figure
one line in `drawing`. A page for a run of another kind comes from its package (`Page`).
"""

from condec.report.build import Page, build_input_page, build_report

__all__ = ["Page", "build_input_page", "build_report"]
