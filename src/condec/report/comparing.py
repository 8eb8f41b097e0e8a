"""The page of two runs whose modes were matched by what they do on the same inputs."""

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas

from condec.basis.files import user_path
from condec.basis.locks import held
from condec.report import facts
from condec.report.build import HERE, environment, refuse_others, replace_whole
from condec.report.numbers import rounded
from condec.report.reading import RunPart, read_run
from condec.report.records import write_data
from condec.report.sheets import Sheets
from condec.report.tables import mode_rows

_SIDES = ("first", "second")


def build_comparison(
    first: str | Path,
    second: str | Path,
    matched: pandas.DataFrame,
    said: Sequence[str],
    out: str | Path,
) -> Path:
    """Make the page of two runs in a folder that holds nothing else; return its ``index.html``.

    `matched` is what `condec.run.compare.compare_modes` returns of them, `said` the same in
    sentences. Links lead to the reports of the runs, where they have one. An earlier page is
    replaced.

    Raises StoreError: a run is damaged, or the page cannot be written; OptionError: `out` holds
    something else.
    """
    final = user_path(out).absolute()
    refuse_others(final, "a comparison", "index.html", "assets", "data")

    def write(fresh: Path) -> None:
        shutil.copytree(HERE / "static", fresh / "assets")
        sheets, columns = Sheets(fresh), dict[str, Any]()
        for side, run, learner in zip(_SIDES, runs, ("learner", "learner_second"), strict=True):
            columns[side] = _modes(run, sheets, matched, side, learner, final)
        columns["site"] = matched["site"].tolist()
        columns["matched"] = matched["matched"].tolist()
        for name in ("correlation", "cosine"):
            columns[name] = rounded(matched[name].tolist())
        write_data(fresh, "compare", columns)
        template = environment(HERE / "templates").get_template("compare.html.jinja")
        titles = [facts.title(run) for run in runs]
        text = template.render(
            root="", said=said, titles=titles, folders=(first, second),
            version=metadata.version("condec"),
        )  # fmt: skip
        (fresh / "index.html").write_text(text, encoding="utf-8")

    with ExitStack() as locks:  # tables and maps are read as the page is written
        for folder in (first, second):
            locks.enter_context(held(user_path(folder), shared=True))
        runs = [read_run(user_path(folder)) for folder in (first, second)]
        replace_whole(final, write)
    return final / "index.html"


def _modes(
    run: RunPart, sheets: Sheets, matched: pandas.DataFrame, side: str, learner: str, out: Path
) -> list[Any]:
    """Return number, name, picture and page of the mode of every row; None where there is none."""
    parts = {(site.key, part.name): (site.folder, part) for site, part in run.parts}
    known: dict[tuple[str, int], list[Any]] = {}
    for site, name in matched[["site", learner]].drop_duplicates().itertuples(index=False):
        folder, part = parts[site, name]
        pictures = {}
        if part.maps is not None and not part.maps.texts:
            tiles = sheets.inputs(
                dict(zip(part.maps.ids, part.maps.pictures.numpy(), strict=True))
            )  # fmt: skip
            firsts = part.maps.samples[:, 0].tolist()
            of = zip(part.maps.mode_ids.tolist(), firsts, strict=True)
            pictures = {mode: tiles[part.maps.ids[sample]].record() for mode, sample in of}
        page = ""
        if run.folder.report.with_name("mode.html").is_file():
            report = os.path.relpath(run.folder.report.parent.absolute(), out)
            page = f"{quote(report)}/mode.html#{quote(folder)}/{quote(name)}/"
        for line in mode_rows(run, part):
            mode = line["id"]
            words = line["stands"] or line["label"]
            known[site, mode] = [mode, words, pictures.get(mode), page and f"{page}{mode}"]
        part.forget()
    pairs = zip(matched["site"], matched[side], strict=True)
    return [None if mode < 0 else known[site, mode] for site, mode in pairs]
