"""Builds the pages of a report from a run folder."""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import jinja2
import tomli_w

from condec.basis import registry
from condec.basis.errors import OptionError
from condec.basis.files import file_name, replace_folder, user_path, writing
from condec.basis.locks import held
from condec.basis.npz import load_record
from condec.explanation import ExplainedInput
from condec.report import (
    drawing,
    explained,
    facts,
    families,
    figures,
    sentences,
    sheets,
    side_by_side,
    tables,
    words,
)  # fmt: skip
from condec.report.drawing import Studio
from condec.report.reading import RunPart, read_run
from condec.report.records import Records
from condec.store import RunFolder

HERE: Final = Path(__file__).parent
_UNSEEN: Final = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Control characters, and those that turn the direction of what follows."""


_KINDS: Final = {"data": "data", "figures": "figures", "maps": "pictures", "pictures": "pictures"}


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page that a package adds to reports, declared in the group ``condec.pages``.

    `name` and `file` are what links to it are called, and its file: ``Retina``, ``retina.html``.
    The Jinja `template` may extend ``base.html.jinja`` and import macros of ``parts.html.jinja``;
    it takes `values`, made from the run and where figures are stored. `applies` tells whether a
    run folder has what the page shows.
    """

    name: str
    file: str
    template: Path
    applies: Callable[[RunFolder], bool]
    values: Callable[[RunPart, Studio], Mapping[str, Any]]


def build_report(
    run_folder: str | Path, pages: Sequence[Page] | None = None, *, out: str | Path | None = None
) -> Path:
    """Make the report of a run folder.

    An earlier report is replaced once the new one is whole. `pages` are those besides the sites',
    by default those of all installed packages; only those that apply to the run are made. `out` is
    the folder of the pages, by default ``report`` in the run folder; with another one, nothing is
    written into the run folder, which may lie on a read-only disk. Returns ``index.html`` there;
    open it with any browser.

    Raises StoreError: there is no complete store, a file is damaged, another process is at work on
    the run, or the report cannot be written; OptionError: `out` holds something else than a report.
    """
    folder = user_path(run_folder)
    final = folder / "report" if out is None else user_path(out).absolute()
    if out is not None:
        refuse_others(final, "a report", "index.html", "assets", "sites")
    if pages is None:
        pages = [registry.find("condec.pages", name) for name in registry.names("condec.pages")]
    with held(folder, shared=out is not None):
        run = read_run(folder)
        here = [page for page in pages if page.applies(run.folder)]
        replace_whole(final, lambda fresh: write_pages(run, fresh, here))
    return final / "index.html"


def build_input_page(
    one: ExplainedInput, folder: str | Path, names: Sequence[str] | None = None, report: str = ""
) -> Path:
    """Make the page of one input, with its pictures, in a folder that holds nothing else.

    An earlier page is replaced once the new one is whole. `names` are those of labels; links lead
    to the pages of a `report`, where it is given, by its place seen from the folder. Returns
    ``index.html`` there.

    Raises StoreError: it cannot be written; OptionError: the folder holds something else.
    """
    final = user_path(folder).absolute()
    refuse_others(final, "the page of an input", "index.html", "assets")
    values = {"one": one, "named": partial(words.label_words, names), "names": names}

    def write(fresh: Path) -> None:
        shutil.copytree(HERE / "static", fresh / "assets")
        template = environment(HERE / "templates").get_template("input.html.jinja")
        text = template.render(
            **values,
            root="",
            report=report,
            stem="maps/",
            studio=Studio(fresh),
            version=metadata.version("condec"),
        )
        (fresh / "index.html").write_text(text, encoding="utf-8")

    replace_whole(final, write)
    return final / "index.html"


def size_in_words(folder: Path) -> str:
    """Say how large a report is, and what takes the room."""
    sizes: Counter[str] = Counter()
    files = [file for file in folder.rglob("*") if file.is_file()]
    for file in files:
        parts = file.relative_to(folder).parts
        sizes[_KINDS.get(parts[0], "pages")] += file.stat().st_size
    of = ", ".join(f"{kind} {size / 1e6:.1f}" for kind, size in sizes.most_common())
    return f"{len(files):,} files, {sizes.total() / 1e6:.1f} MB ({of})"


def refuse_others(folder: Path, what: str, *parts: str) -> None:
    """Refuse a folder that holds other things than an earlier result of the same kind."""
    own = all((folder / part).exists() for part in parts)
    if folder.exists() and not own and (not folder.is_dir() or any(folder.iterdir())):
        raise OptionError(f"out: {folder} holds other things than {what}; name a new folder")


def replace_whole(final: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside the one in its place, which it takes once it is whole."""
    fresh = final.with_name(f".{final.name}.new")
    try:
        with writing(f"{final}"):
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            write(fresh)
            replace_folder(final, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write_pages(run: RunPart, folder: Path, pages: Sequence[Page] = ()) -> None:
    """Write the pages of a run, with their pictures, into a folder that is there."""
    shutil.copytree(HERE / "static", folder / "assets")
    (folder / "sites").mkdir()
    templates = environment(HERE / "templates", *(page.template.parent for page in pages))
    studio = Studio(folder)
    templates.globals |= {
        "run": run, "studio": studio, "title": facts.title(run), "pages": pages,
        "version": str(run.store.recipe.get("condec") or metadata.version("condec")),
    }  # fmt: skip

    def write(file: str, template: str, root: str = "", **values: Any) -> None:
        text = templates.get_template(template).render(root=root, **values)
        (folder / file).write_text(text, encoding="utf-8")

    for page in pages:
        write(page.file, page.template.name, page=page, **page.values(run, studio))
    records = Records(run, sheets.Sheets(folder))
    for site in run.sites:
        modes = {part.name: records.dictionary(site, part) for part in site.parts}
        write(f"sites/{site.folder}.html", "site.html.jinja", root="../", site=site, modes=modes)
        for part in site.parts:
            part.forget()
    (folder / "inputs").mkdir(exist_ok=True)
    shown = {}
    for name, place in run.explained.items():
        one, file = load_record(place, ExplainedInput), f"inputs/{file_name(name)}"
        values = {"one": one, "named": run.label, "names": run.label_names}
        values |= {"report": "../", "stem": f"{file}/"}
        write(f"{file}.html", "input.html.jinja", root="../", **values)
        pixels = one.picture.numpy()
        squares = len(pixels) <= sheets.SQUARES_UP_TO
        picture = studio.picture(pixels) if pixels.size else ""
        shown[name] = {"picture": picture, "squares": squares, "why": one.why}
    records.finish()
    for name in ("mode", "label") if run.learners else ():
        write(f"{name}.html", f"{name}.html.jinja")
    # The last: what it needs of each site is known.
    flows = records.flows
    write("index.html", "index.html.jinja", shown=shown, strips=records.strips(), flows=flows)


def _clean(value: Any) -> Any:
    """Take out of a text what is not to be seen, and would break or turn the page."""
    if not isinstance(value, str):
        return value
    return type(value)(_UNSEEN.sub("\N{REPLACEMENT CHARACTER}", value))


def environment(*folders: Path) -> jinja2.Environment:
    """Return what makes pages from templates, with the words, tables and figures of a report."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders), autoescape=True, undefined=jinja2.StrictUndefined,
        finalize=_clean, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    # Templates ask for what they show: a new table or sentence is one line there.
    for module in (
        drawing, explained, facts, families, figures, sentences, sheets, side_by_side, tables,
        words,
    ):  # fmt: skip
        environment.globals[module.__name__.rpartition(".")[2]] = module
    for text in (words.fixed, words.percent, words.count, words.breakable, words.twin_words):
        environment.filters[text.__name__] = text
    environment.filters |= {"url": quote, "file": file_name, "toml": tomli_w.dumps}
    return environment
