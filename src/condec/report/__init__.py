"""The report: a run folder becomes a static site that opens from the file system.

``build_report("run")`` writes ``run/report/index.html``, one page a site under
``report/sites/``, and the pictures they show. The pages load nothing from outside, link
relatively, read well on a phone and on paper, and lack nothing but comforts (sorting,
filtering) where scripts are off. The same run folder gives the same bytes.

What is read, all but the store optional; what is missing is left out, and the page says so:

    run.toml                                 [report] title, [model] spec, [data] source
    log.jsonl                                "time" of the last line, as the date of the run
    contributions.zarr                       store, complete
    modes/<quoted site>/<name>/              `load_dictionary` and `Modes.load`
    analysis/statistics.parquet              `layer_statistics`
    analysis/control.parquet                 `control_curve`, of all sites, edits and replacements
    analysis/labels.json                     names of the labels: a list, or null
    analysis/maps/<quoted site>/<name>.npz   `SiteMaps.save`

``<quoted site>`` is ``urllib.parse.quote(site.key, safe="")``, ``<name>`` that of the modes.
"""

from condec.report.build import build_report

__all__ = ["build_report"]
