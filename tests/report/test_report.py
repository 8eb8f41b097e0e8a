"""The report: what stands on the pages, that nothing comes from outside, and bad run folders."""

import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
import torch

from condec import attribution, effects
from condec.attribution import IntegratedGradients, targets
from condec.basis import registry
from condec.basis.errors import OptionError, StoreError
from condec.dictionary import KMeans
from condec.explanation import leading_modes
from condec.modes.hierarchy import Hierarchy
from condec.modes.modes import Modes
from condec.report import Page as OtherPage
from condec.report import build_report, facts, figures, sentences, tables, words
from condec.report.build import write_pages
from condec.report.numbers import labels_of
from condec.report.reading import read_run
from condec.report.records import Records
from condec.report.sheets import Sheets
from condec.report.tables import Line
from condec.store import RunFolder
from condec.store.collection import collect
from condec.store.statistics import layer_statistics
from condec.store.store import Store
from condec.store.twins import RandomWeights, ShuffledLabels, collect_twin
from condec.testing.models import small_resnet
from small_runs import SITES, add_modes, add_results, contents, small_inputs, small_run
from small_runs import record as recorded

EVIL = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "{{ 7 * 7 }} & 'x'")
VOID = {"meta", "link", "img", "br", "hr", "wbr", "input"}
SHAPES = {"svg", "image"}
SVG = "http://www.w3.org/2000/svg"  # a name, which nothing is loaded from


class Page(HTMLParser):
    """Tags, links, resources and text of one page; refuses tags that do not close."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags, self.links, self.resources, self.attributes = [], [], [], []
        self.open, self.text, self.ids = [], "", []
        self.file = file
        self.feed(file.read_text(encoding="utf-8"))
        assert not self.open, f"{file}: {self.open} are not closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        values = dict(attrs)
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "a":
            self.links.append(values["href"])
        else:
            self.resources += [values[k] for k in ("src", "href", "srcset", "data") if k in values]
        if tag not in VOID and not (tag in SHAPES and self.get_starttag_text().endswith("/>")):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open, f"{self.file}: </{tag}> without a beginning"
        assert self.open.pop() == tag, f"{self.file}: </{tag}> in the wrong place"

    def handle_data(self, data):
        self.text += data


def loaded(report: Path, name: str):
    """What a file of data holds."""
    head, text, end = (report / "data" / f"{name}.js").read_text().splitlines()
    assert (head, end) == (f"condec({json.dumps(name)},", ")")
    return json.loads(text)


def record(report: Path, key: str, number: str | int):
    """The record of a mode, by the place of its dictionary and its number."""
    modes = loaded(report, f"{key}/modes")
    place = modes["columns"]["id"].index(int(number))
    several = loaded(report, f"{key}/{place // modes['per_file']}")
    return several[place % modes["per_file"]]


def pages(folder: Path) -> list[Page]:
    return [Page(file) for file in sorted(folder.rglob("*.html"))]


def shown(file: Path) -> str:
    """Text of a page as it is read."""
    return " ".join(Page(file).text.split())


def cells(columns, *rows) -> list[dict[str, str]]:
    """The texts of a table by the heads of its columns, row by row."""
    stand = tables.shown(columns, rows)
    return [{column.name: str(column.text(row)) for column in stand} for row in rows]


@pytest.fixture
def quick(monkeypatch):
    """Figures are drawn but not rendered, which takes most of the time of a report."""
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: path.touch())


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return small_run(tmp_path_factory.mktemp("whole") / "run", bad=[7])


@pytest.fixture(scope="module")
def report(run_folder) -> Path:
    return build_report(run_folder).parent


@pytest.fixture(scope="module")
def run(run_folder, report):
    return read_run(run_folder)


# --- files and links ----------------------------------------------------------------------


def test_pages_link_only_to_what_is_there(report):
    found = pages(report)
    names = sorted(page.file.relative_to(report).as_posix() for page in found)
    sites = ["sites/block1.html", "sites/block2%3Ainput.html"]
    assert names == ["index.html", "label.html", "mode.html", *sites]
    for page in found:
        for link in page.links + page.resources:
            if link.startswith("data:,"):
                continue
            place, _, anchor = link.partition("#")
            target = page.file.parent / unquote(place) if place else page.file
            assert target.is_file(), f"{page.file.name}: {link}"
            if anchor and place.endswith("mode.html"):
                record(report, *unquote(anchor).rsplit("/", 1))
            elif anchor:
                assert anchor in Page(target).ids


def test_every_file_is_used(report):
    wanted = {report / "index.html"}
    for page in pages(report):
        for link in page.links + page.resources:
            if not link.startswith(("data:", "#")):
                wanted.add((page.file.parent / unquote(link.partition("#")[0])).resolve())
    data = "".join(file.read_text() for file in (report / "data").rglob("*.js"))
    rest = {file for file in report.rglob("*") if file.is_file()} - wanted
    for file in rest - {*(report / "data").rglob("*.js")}:
        assert f'"{file.relative_to(report).as_posix()}"' in data


def test_nothing_is_loaded_from_outside(report):
    for page in pages(report):
        for resource in page.resources:
            assert not re.match(r"(?:[a-z]+:)?//|/", resource), resource
        assert not re.search(r"https?:", page.file.read_text()), page.file
    for file in report.rglob("*"):
        if file.suffix in {".css", ".js"}:
            assert not re.search(
                r"https?:|url\(|@import|//[a-z]", file.read_text().replace(SVG, "")
            ), file
        if file.suffix == ".svg":
            text = file.read_text()
            assert not re.search(r"(?:href|src)\s*=\s*[\"'](?!#|data:)", text), file


def test_ids_are_unique_and_images_have_words(report):
    check_escaped(report)
    for page in pages(report):
        assert len(page.ids) == len(set(page.ids))


def test_same_run_gives_the_same_bytes_and_old_files_go(run_folder, report):
    before = contents(report)
    (report / "stale.html").write_text("old")
    build_report(run_folder)
    assert contents(report) == before
    assert not [p.name for p in run_folder.iterdir() if p.name.startswith(".report")]


def test_a_report_elsewhere_writes_nothing_into_the_run(run_folder, bare, tmp_path, quick):
    def content():
        return {f: f.stat().st_mtime_ns for f in run_folder.rglob("*") if f.name != ".lock"}

    before, out = content(), tmp_path / "some" / "pages"
    for run in (bare, run_folder):  # an earlier report is replaced
        assert build_report(run, out=out) == out / "index.html"
    assert content() == before
    assert sorted(file.name for file in out.parent.iterdir()) == ["pages"]
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(OptionError, match=r"out: .* holds other things than a report; name a new"):
        build_report(run_folder, out=tmp_path)


@pytest.mark.parametrize("method", ["write_text", "rename"])
def test_a_report_that_fails_leaves_the_old_one(run_folder, report, quick, monkeypatch, method):
    does = getattr(Path, method)

    def fail(self, *args, **kwargs):
        if method == "rename" and self.name != ".report.new":
            return does(self, *args, **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, method, fail)
    with pytest.raises(StoreError, match=r"report: the disk is full"):
        build_report(run_folder)
    monkeypatch.undo()
    assert "A small run" in (report / "index.html").read_text()
    assert not [p.name for p in run_folder.iterdir() if p.name.startswith(".report")]


# --- what stands on the pages -------------------------------------------------------------


def test_summary_says_what_was_run(report, run_folder):
    text = shown(report / "index.html")
    store = Store.open(run_folder / "contributions.zarr")
    right = (store.labels == store.predictions).float().mean().item()
    for said in (
        "A small run", "2026-03-01", "59 inputs", "1 skipped", f"{100 * right:.1f} %",
        "1 of 60 inputs were left out: 7.", "integrated gradients, 4 steps from zeros",
        "the largest logit", "SmallResNet", "block2:input", store.recipe["condec"],
    ):  # fmt: skip
        assert said in text, said


def test_facts_are_the_stores_figures(run):
    found = {fact.name: fact.value for fact in facts.of_run(run)}
    middle = [run.store.completeness()[site.key].quantile(0.5) for site in run.sites]
    assert found["completeness"] == f"{torch.stack(middle).quantile(0.5):.2f}"
    assert found["sites"] == "2"
    for _, part in run.parts:
        assert found[f"modes in use, {part.name}"] == str(len(part.modes))
    site = run.sites[1]
    of_site = {fact.name: fact.value for fact in facts.of_site(site)}
    assert of_site["units"] == str(site.info.n_units)
    assert of_site["modes in use"] == str(len(site.parts[0].modes))


def test_the_line_of_a_site_holds_held_out_figures(run):
    site = run.sites[1]
    (part,) = site.parts
    (line,) = cells(tables.SITES, Line(site, part))
    metrics = part.dictionary.training.metrics["held_out"]
    assert line[tables.R2] == f"{metrics.r2:.2f}"
    assert line["Modes per input"] == f"{metrics.l0:.1f}"
    train, held_out = (part.modes.correlation(split=s) for s in ("train", "held_out"))
    wanted = [float(held_out[m, train[m].argmax()]) for m in range(len(part.modes))]
    middle = float(torch.tensor(wanted).quantile(0.5))
    assert tables.label_correlation(part) == pytest.approx(middle)
    assert line["Label corr."] == words.fixed(middle)
    rows = part.areas[(part.areas["edit"] == "ablate") & (part.areas["ranking"] == "modes")]
    mean = rows["auc_difference"].mean()
    assert tables.selectivity(part, "ablate") == pytest.approx(mean, nan_ok=True)
    assert line["Ablate"] == words.fixed(mean)
    assert "Learner" not in line


def remade(part, tables=None, **read):
    """A dictionary's part of which something else was read than lies on disk."""
    made = replace(part, tables=part.tables if tables is None else tables)
    made.__dict__.update(read)
    return made


def without_held_out(run, number):
    """The run as if the dictionaries of its first sites had held nothing out."""
    sites = list(run.sites)
    for place, site in enumerate(sites[:number]):
        (one,) = site.parts
        training = one.dictionary.training
        metrics = {"train": training.metrics["train"]}
        dictionary = replace(one.dictionary, training=replace(training, metrics=metrics))
        sites[place] = replace(site, parts=(remade(one, dictionary=dictionary),))
    return replace(run, sites=tuple(sites))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_figures_say_which_rows_they_are_of(run, number):
    changed = without_held_out(run, number)
    lines = cells(tables.SITES, *tables.lines(changed))
    assert [("training" in line[tables.R2]) for line in lines] == [number > 0, number > 1]
    assert [("training" in line["Modes per input"]) for line in lines] == [number > 0, number > 1]
    for place, (site, part) in enumerate(changed.parts):
        split, key = ("training", "train") if place < number else ("held out", "held_out")
        metrics = part.dictionary.training.metrics[key]
        assert (part.split, part.measured("r2")) == (key, metrics.r2)
        assert f"R\N{SUPERSCRIPT TWO}, {split}" in [fact.name for fact in facts.of_site(site)]
        name = f"R\N{SUPERSCRIPT TWO}, {split}, {part.name}"
        assert name in [fact.name for fact in facts.of_run(changed)]


def test_modes_are_ordered_by_held_out_users_and_correlation(run, report):
    site = run.sites[1]
    (part,) = site.parts
    rows = tables.mode_rows(run, part)
    used = part.modes.loadings[part.modes.held_out] > 0
    assert [row["users"] for row in rows] == [int(used[:, row["row"]].sum()) for row in rows]
    order = [(row["users"] >= 5, row["held_out"]) for row in rows]
    assert order == sorted(order, reverse=True)
    text = (report / "sites" / f"{site.folder}.html").read_text()
    cards = [int(number) for number in re.findall(r'id="kmeans-mode-(\d+)"', text)]
    assert cards == [row["id"] for row in rows if row["id"] in cards]
    assert sorted(cards) == sorted(part.modes.ids[leading_modes(part.modes, 3)].tolist())
    use = (part.modes.loadings[~part.modes.held_out] != 0).float().mean(0)
    assert rows[0]["use"] == pytest.approx(float(use[rows[0]["row"]]))
    columns = loaded(report, f"{site.folder}/kmeans/modes")["columns"]
    assert columns["id"] == [row["id"] for row in rows]
    assert columns["train"] == pytest.approx([row["train"] for row in rows], abs=5e-4)


def test_site_page_has_every_part(report):
    page = Page(report / "sites" / "block2%3Ainput.html")
    text = " ".join(page.text.split())
    for said in (
        "Control curves",
        "held out",
        "grand mean",
        "Cosine",
        "All 4 modes in use",
        "KMea",
    ):
        assert said in text, said
    images = " ".join(page.resources)
    for part in (
        "ablate-zero-own.svg",
        "preserve-zero-other.svg",
        "ablate-labels.svg",
        "pictures/sheet-",
        "maps/block2%253Ainput/kmeans/",
    ):
        assert part in images, part


def test_pictures_are_kept_once(report):
    pictures = list((report / "pictures").iterdir())
    assert len(pictures) == len({file.read_bytes() for file in pictures})


def check_escaped(report: Path) -> None:
    for page in pages(report):
        assert page.tags.count("script") == 3
        assert not [name for name in page.attributes if name.startswith("on")]
        assert "x" not in page.resources
        assert not re.search(r"<img(?![^>]*\balt=\"[^\"]+\")", page.file.read_text())
    for file in report.rglob("*.svg"):
        assert "<script" not in file.read_text()


def test_names_are_escaped_everywhere(evil_report):
    check_escaped(evil_report)
    assert all("alert(3)" in page.text for page in pages(evil_report))
    site = "".join(page.text for page in pages(evil_report / "sites"))
    assert any(name in site for name in EVIL)
    assert loaded(evil_report, "run")["labels"] == list(EVIL)


# --- parts that are missing ---------------------------------------------------------------


@pytest.mark.parametrize(
    "links", [(), ("stats",), ("fit",), ("fit", "control"), ("fit", "map"), ("stats", "fit", "map")]
)
def test_missing_parts_are_left_out(run_folder, tmp_path, quick, links):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    made = {"stats": ["statistics.parquet"], "control": ["control", "control_comparison"]}
    made |= {"map": ["maps"], "fit": ["rivals", "stability"], "labels": ["labels.json"]}
    for name in (name for link in made if link not in links for name in made[link]):
        place = folder / "analysis" / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    if "fit" not in links:
        shutil.rmtree(folder / "modes")
    recorded(folder)
    report = build_report(folder).parent
    text = " ".join(page.text for page in pages(report))
    assert ("Along the network" in text) == ("stats" in links)
    assert ("No dictionary was fitted here" in text) == ("fit" not in links)
    assert ("Mode " in text) == ("fit" in links)
    assert ("each on the inputs that use it most" in text) == ("map" in links)
    drawn = (report / "figures" / "block1" / "sae-ablate-zero-own.svg").exists()
    assert drawn == ("control" in links)


def test_without_labels(tmp_path, quick):
    links = ("fit", "map", "check")
    report = build_report(small_run(tmp_path / "run", labelled=False, links=links)).parent
    text = Page(report / "index.html").text
    assert "The inputs have no labels" in text
    assert "accuracy" not in text.split("Words")[0]
    assert "Mode " in Page(report / "sites" / "block1.html").text


def test_without_plan_and_log(tmp_path, quick):
    folder = small_run(tmp_path / "run", links=())
    (folder / "run.toml").unlink()
    (folder / "log.jsonl").write_text('{"time": "2026-0')
    (folder / "analysis" / "labels.json").unlink()
    (folder / "tasks" / "collect.json").unlink()
    text = Page(build_report(folder)).text
    assert "SmallResNet" in text
    assert "run.toml" not in text


def test_a_store_of_another_recipe(tmp_path, quick):
    whole = Store.open(small_run(tmp_path / "run", links=()) / "contributions.zarr")
    sizes = {"n_samples": whole.n_samples, "shard_size": whole.shard_size}
    out = tmp_path / "odd" / "contributions.zarr"
    store = Store.create(out, recipe={"made by": "hand"}, sites=whole.infos, **sizes)
    for shard in store.missing():
        store.write_shard(shard, whole.read_shard(shard))
    assert "<dt>made by</dt>" in build_report(tmp_path / "odd").read_text()


@pytest.mark.parametrize(
    ("model", "data", "title"),
    [
        ("digits", "npz:a.npz", "digits on npz:a.npz"),
        ("huggingface:/models/stories", "tokens:~/b.npz?length=4", "stories on b.npz"),
    ],
)
def test_title_falls_back_to_model_and_data(run, model, data, title):
    recipes = {"collect": {"model": {"spec": model}, "data": {"source": data}}}
    assert facts.title(replace(run, recipes=recipes, title="")) == title


# --- warnings -----------------------------------------------------------------------------


def changed(run, values):
    sites = (replace(run.sites[0], completeness=torch.tensor(values)), *run.sites[1:])
    return list(sentences.warnings(replace(run, sites=sites)))


def test_what_the_run_left_out_comes_first(run):
    changed = replace(run, left_out=("control: no label has both training and held-out rows",))
    first = next(iter(sentences.warnings(changed)))
    assert first == "Left out: control: no label has both training and held-out rows."


def test_warnings_about_completeness(run):
    fine = [text for text in changed(run, [0.99, 1.0, 1.01]) if "block1" in text]
    assert not [text for text in fine if "ompleteness" in text]
    assert any("add up" in text and "block1 0.80" in text for text in changed(run, [0.8] * 5))
    wide = changed(run, [0.0, 1.0, 1.0, 1.0, 2.0])
    assert any("differs much" in text and "block1" in text for text in wide)


def with_part(run, part):
    """The run with another dictionary at its second site, and that alone."""
    return replace(run, sites=(replace(run.sites[1], parts=(part,)),))


def test_dead_modes_are_those_of_held_out_rows(run):
    (one,) = run.sites[1].parts
    loadings = one.modes.loadings.clone()
    loadings[one.modes.held_out] = 0.0
    loadings[one.modes.held_out.nonzero()[0], 0] = 1.0
    dead = remade(one, modes=replace(one.modes, loadings=loadings))
    assert dead.dead_share == 1 - 1 / one.modes.n_modes
    changed = with_part(run, dead)
    (said,) = [text for text in sentences.warnings(changed) if "no held-out input" in text]
    assert "block2:input" not in " ".join(t for t in sentences.warnings(run) if "dead" in t)
    assert f"block2:input 75 % of {one.modes.n_modes}" in said
    assert cells(tables.CHANCE, *tables.lines(changed))[0]["Dead"] == "75 %, too many"
    said = sentences.about_dictionary(changed, dead)
    assert any("no held-out input: this dictionary 75 % of 4." in text for text in said)
    held_out = torch.zeros_like(one.modes.held_out)
    nowhere = remade(one, modes=replace(one.modes, held_out=held_out, n_modes=16))
    assert "used by no input: block2:input 75 % of 16." in " ".join(
        sentences.warnings(with_part(run, nowhere))
    )


def with_r2(run, train: float, held_out: float):
    (one,) = run.sites[1].parts
    training = one.dictionary.training
    values = {"train": train, "held_out": held_out}
    metrics = {s: replace(of, r2=values[s]) for s, of in training.metrics.items()}
    dictionary = replace(one.dictionary, training=replace(training, metrics=metrics))
    return with_part(run, remade(one, dictionary=dictionary))


@pytest.mark.parametrize(
    ("train", "held_out", "said"),
    [
        (1.0, -0.17, "is 0 or below on held-out inputs .*: block2:input \N{MINUS SIGN}0.17 (1.00)"),
        (0.3, 0.0, "is 0 or below on held-out inputs .*: block2:input 0.00 (0.30)"),
        (0.9, 0.69, "is much lower on held-out inputs .*: block2:input 0.69 (0.90)"),
        (0.9, 0.71, None),
        (0.9, math.nan, None),
    ],
)
def test_warnings_where_modes_do_not_hold_for_other_inputs(run, train, held_out, said):
    changed = with_r2(run, train, held_out)
    (part,) = changed.sites[0].parts
    own = list(sentences.about_dictionary(changed, part))
    found = [text for text in sentences.warnings(changed) if text.startswith(f"{tables.R2} is")]
    if said is None:
        assert found == []
        return
    begin, _, end = said.partition(" .*")
    (text,) = found
    assert text.startswith(f"{tables.R2} {begin}")
    assert end in text
    assert any(text.startswith(f"{tables.R2} {begin}") for text in own)


def test_modes_whose_labels_are_not_held_out_are_warned_of(run):
    (one,) = run.sites[1].parts
    labels = one.modes.store.labels
    # All held-out inputs carry one label: none varies among them.
    modes = replace(one.modes, held_out=labels == 0)
    changed = with_part(run, remade(one, modes=modes))
    said = "No label that fits a mode best is among the held-out inputs"
    assert f"{said} (and among others): block2:input. That cards" in " ".join(
        sentences.warnings(changed)
    )
    assert said not in " ".join(sentences.warnings(run))


def test_modes_without_held_out_users_are_warned_of_and_marked(run, tmp_path, quick):
    (one,) = run.sites[1].parts
    loadings = one.modes.loadings.clone()
    few = one.modes.held_out.nonzero().flatten()[4:]
    loadings[few] = 0.0
    loadings[one.modes.held_out.nonzero().flatten()[:4]] = 1.0
    rare = remade(one, maps=None, modes=replace(one.modes, loadings=loadings))
    changed = with_part(run, rare)
    (said,) = [text for text in sentences.warnings(changed) if "No mode is used by" in text]
    assert said.startswith("No mode is used by 5 held-out inputs: block2:input. Cards there are")
    assert "No mode is used by" not in " ".join(sentences.warnings(run))
    users = (loadings > 0).sum(0)
    rows = tables.mode_rows(changed, rare)
    assert [row["row"] for row in rows] == users.argsort(descending=True, stable=True).tolist()
    write_pages(changed, tmp_path)
    used = int((loadings[~rare.modes.held_out, rows[0]["row"]] > 0).sum())
    assert record(tmp_path, "block2%3Ainput/kmeans", rows[0]["id"])[8] == [used, 4]
    assert "4 users: too few to tell" in shown(tmp_path / "sites" / "block2%3Ainput.html")


def cards_of(run, part, folder):
    """The lines of the modes that stand on the page of a site."""
    site = next(site for site, one in run.parts if one.site == part.site)
    return Records(run, Sheets(folder)).dictionary(site, part)[1]


def test_modes_of_few_held_out_users_have_no_card(run, tmp_path):
    (one,) = run.sites[1].parts
    loadings = torch.rand(one.modes.loadings.shape, generator=torch.Generator().manual_seed(0)) + 1
    loadings[one.modes.held_out.nonzero().flatten()[4:], 0] = 0.0
    for maps in (one.maps, None):
        modes = replace(one.modes, loadings=loadings)
        part = remade(one, maps=maps, modes=modes)
        found = cards_of(with_part(run, part), part, tmp_path)
        assert found
        assert int(one.modes.ids[0]) not in [line["id"] for line in found]


def test_nearly_equal_atoms_have_one_card(run, tmp_path, quick):
    (one,) = run.sites[1].parts
    atoms = torch.eye(*one.modes.atoms.shape)
    atoms[1] = 1.5 * atoms[0]
    loadings = torch.rand(one.modes.loadings.shape, generator=torch.Generator().manual_seed(0)) + 1
    modes = replace(one.modes, atoms=atoms, loadings=loadings)
    part = remade(one, maps=None, modes=modes)
    changed, (first, second) = with_part(run, part), modes.ids[:2].tolist()
    ids = [line["id"] for line in cards_of(changed, part, tmp_path / "one")]
    assert sorted(set(modes.ids.tolist()) - set(ids)) in ([first], [second])
    joined = first if first in ids else second
    assert part.n_alike == 2
    (said,) = [text for text in sentences.warnings(changed) if "nearly equal atoms" in text]
    assert f"share a card: block2:input 2 of {len(modes)}. Fewer" in said
    assert any(
        f"share a card: this dictionary 2 of {len(modes)}." in text
        for text in sentences.about_dictionary(changed, part)
    )
    write_pages(changed, tmp_path)
    near = record(tmp_path, "block2%3Ainput/kmeans", joined)[6]
    assert near[0] == first + second - joined
    assert near[1] == 1000


def test_a_learner_is_no_rival_of_its_own_in_earlier_tables(run_folder, tmp_path):
    folder = RunFolder(shutil.copytree(run_folder, tmp_path / "run"))
    table = folder.read_table("rivals", "block2:input", "kmeans")
    table.loc[table["rival"] == "pca", "rival"] = "kmeans"
    folder.write_table(table, "rivals", "block2:input", "kmeans")
    recorded(folder)
    (part,) = read_run(folder.path).sites[1].parts
    assert set(table["rival"]) - set(part.tables["rivals"]["rival"]) == {"kmeans"}


# --- is it more than chance? --------------------------------------------------------------


def test_numbers_stand_side_by_side(run):
    (part,) = run.sites[1].parts
    metrics, found = part.dictionary.training.metrics, {}
    for row in tables.number_rows(part):
        found[row["name"]] = (row["train"], row["held_out"])
    for name, key, digits in (
        ("Inputs", "n_rows", 0),
        ("Cosine", "cosine", 3),
        ("Shrinkage", "shrinkage", 3),
        ("Modes per input", "l0", 1),
        ("Modes in use", "n_alive", 0),
        ("Atom Hoyer", "atom_hoyer", 3),
        ("Coherence", "coherence", 3),
        ("Effective rank", "effective_rank", 1),
    ):
        values = tuple(f"{getattr(metrics[s], key):.{digits}f}" for s in ("train", "held_out"))
        assert found[name] == values, name
    assert len(found) == 13
    (fitted,) = without_held_out(run, 2).sites[1].parts
    lines = cells(tables.NUMBERS, *tables.number_rows(fitted))
    assert {line["Held out"] for line in lines} == {"\N{EN DASH}"}
    blank = replace(fitted.dictionary, training=None)
    assert list(tables.number_rows(remade(fitted, dictionary=blank))) == []


def rivals_of(run, **r2):
    (one,) = run.sites[1].parts
    found = one.tables.get("rivals")
    found = found[found["rival"].isin(r2)].copy()
    found["r2"] = found["rival"].map(r2)
    found["label_correlation"] = [0.9] + [0.1] * (len(found) - 1)
    return with_part(run, replace(one, tables={**one.tables, "rivals": found}))


def test_rivals_that_do_as_well_are_named(run):
    equal = rivals_of(run, dictionary=0.8, shuffled_units=0.3, pca=0.79)
    (part,) = equal.sites[0].parts
    (line,) = cells(tables.CHANCE, *tables.lines(equal))
    assert line["Rivals that do as well"] == "PCA (R\N{SUPERSCRIPT TWO})"
    rows = cells(tables.RIVALS, *tables.rival_rows(part))
    assert [row[""] for row in rows] == ["", "", "does as well in R\N{SUPERSCRIPT TWO}"]
    names = [row["Held out"].partition(" <")[0] for row in rows]
    assert names == ["this dictionary", "shuffled units", "PCA"]
    assert any(
        text.startswith("PCA at equal L0 does as well on held-out rows: R2 0.79")
        for text in sentences.about_dictionary(equal, part)
    )
    wanted = "Rivals do as well as the dictionary: block2:input: PCA (R\N{SUPERSCRIPT TWO})."
    assert wanted in list(sentences.warnings(equal))
    worse = rivals_of(run, dictionary=0.8, shuffled_units=0.3, pca=0.5)
    assert cells(tables.CHANCE, *tables.lines(worse))[0]["Rivals that do as well"] == "none"
    said = sentences.about_dictionary(worse, worse.sites[0].parts[0])
    assert any("No rival does as well" in text for text in said)
    assert not [text for text in sentences.warnings(worse) if "Rivals do" in text]


def test_stability_is_said_for_all_and_for_each(run, report):
    site = run.sites[1]
    (part,) = site.parts
    line, found = cells(tables.CHANCE, *tables.lines(run))[1], part.tables.get("stability")
    assert line["Other seeds"] == f"{found['seed_cosine'].mean():.2f}"
    assert line["Half the inputs"] == f"{found['half_cosine'].mean():.2f}"
    both = ((found["seed_cosine"] >= 0.9) & (found["half_cosine"] >= 0.9)).sum()
    assert line["Stable modes"] == f"{both} of {len(part.modes)}"
    said = sentences.about_dictionary(run, part)
    (said,) = [text for text in said if "4 other seeds" in text]
    assert f"a cosine of {found['seed_cosine'].mean():.2f} on average" in said
    assert f"{both} of {len(part.modes)} modes in use are stable" in said
    rows = tables.mode_rows(run, part)
    for row in rows:
        of = found.set_index("mode").loc[row["id"]]
        assert (row["seeds"], row["halves"]) == (of["seed_cosine"], of["half_cosine"])
    columns = loaded(report, f"{site.folder}/kmeans/modes")["columns"]
    assert columns["seeds"][0] == pytest.approx(rows[0]["seeds"], abs=5e-4)
    assert (report / "figures" / site.folder / "kmeans-stability.svg").is_file()


def test_what_was_not_checked_is_not_said(run, report):
    line = cells(tables.CHANCE, *tables.lines(run))[0]
    for name in ("Stable modes", "Rivals that do as well", "Other seeds"):
        assert line[name] == "\N{EN DASH}"
    text = shown(report / "sites" / "block1.html")
    assert set(loaded(report, "block1/sae/modes")["columns"]["seeds"]) == {None}
    assert "other seeds" not in text
    index = shown(report / "index.html")
    assert "Is it more than chance?" in index
    assert "add what is missing" not in index  # one site has both


def test_the_page_says_how_to_check(tmp_path, quick):
    index = build_report(small_run(tmp_path / "run", links=("fit",)))
    said = shown(index)
    assert "find the same modes (stability_seeds = 5) and whether simpler dictionaries" in said
    assert "(rivals = true). Put that under [fit] in run.toml" in said
    assert "Other seeds" not in said


def test_stability_of_dead_modes(run):
    (one,) = run.sites[1].parts
    nothing = dict.fromkeys(("seed_cosine", "half_cosine", "chance"), math.nan)
    dead = {"stability": one.tables.get("stability").assign(**nothing)}
    said = list(sentences.about_dictionary(run, replace(one, tables=dead)))
    assert "Stability was measured, but every mode is dead." in said


def test_correlations_that_are_not_defined_are_not_shown(run):
    (one,) = run.sites[1].parts
    rows = (one.modes.store.labels != 2) & one.modes.held_out
    some = remade(one, modes=replace(one.modes, held_out=rows))
    assert some.held_out_correlation[:, 2].isnan().all()
    assert some.held_out_correlation[:, :2].isfinite().all()


# --- run folders that cannot be -----------------------------------------------------------


def test_a_mode_that_goes_with_no_label_has_none(run):
    part = run.parts[0][1]
    loadings = part.modes.loadings.clone()
    loadings[~part.modes.held_out, 0] = 1.0  # which vary on held-out rows only
    one = remade(part, modes=replace(part.modes, loadings=loadings))
    label, held_out = one.best
    assert (int(label[0]), bool(held_out[0].isnan())) == (-1, True)
    assert bool((label[1:] >= 0).all())
    (line,) = [line for line in tables.mode_rows(run, one) if line["row"] == 0]
    assert line["label"] == "\N{EN DASH}"
    first, second = labels_of(one, torch.tensor([0, 1]))
    assert (first, len(second) % 5, len(second) > 0) == ([], 0, True)


def test_no_store(tmp_path):
    with pytest.raises(StoreError, match=r"expected a run folder with contributions\.zarr"):
        build_report(tmp_path)


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    return small_run(tmp_path_factory.mktemp("bare") / "run", links=())


def test_incomplete_store(bare, tmp_path):
    folder = shutil.copytree(bare, tmp_path / "run")
    next((folder / "contributions.zarr" / "manifest").glob("shard-*.json")).unlink()
    with pytest.raises(StoreError, match="incomplete"):
        build_report(folder)
    assert not (folder / "report").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "analysis/statistics.parquet",
            r"statistics\.parquet: no record says what it was",
        ),
        ("analysis/labels.json", r"labels\.json: not what 'collect' has made"),
        ("run.toml", r"run\.toml: cannot be read as TOML"),
    ],
)
def test_damaged_files_are_named(bare, tmp_path, name, message):
    folder = shutil.copytree(bare, tmp_path / "run")
    (folder / name).write_text("[[[ {")
    with pytest.raises(StoreError, match=message):
        build_report(folder)


def test_empty_tables_count_as_missing(bare, tmp_path, quick):
    folder = shutil.copytree(bare, tmp_path / "run")
    pd.DataFrame({"site": []}).to_parquet(folder / "analysis" / "statistics.parquet")
    recorded(folder)
    assert "Along the network" not in Page(build_report(folder)).text


def test_nan_is_a_dash(run):
    blank = replace(run.sites[0], parts=(), completeness=None)
    (line,) = cells(tables.SITES, Line(blank, None))
    assert {line[name] for name in (tables.R2, "Modes in use", "Ablate")} == {"\N{EN DASH}"}
    training = replace(run.sites[0].parts[0].dictionary, training=None)
    part = remade(run.sites[0].parts[0], dictionary=training, tables={})
    assert (part.split, part.areas) == ("", None)
    assert math.isnan(part.measured("r2"))
    assert math.isnan(tables.selectivity(part, "ablate"))


# --- control curves -----------------------------------------------------------------------


def compared(edit, **verdicts):
    """A comparison of modes with other rankings, with made-up numbers."""
    rows = [
        {"site": "block1", "edit": edit, "replacement": "zero", "ranking": "modes",
         "against": name, "difference": -0.25, "low": -0.5, "high": 0.125, "verdict": verdict}
        for name, verdict in verdicts.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def summarised():
    """Summaries of three rankings over two labels; the second label has none for modes."""
    rows = [
        {"site": "block1", "label": label, "label_name": str(label), "ranking": ranking,
         "edit": edit, "replacement": "zero", "auc_difference": value - 0.25 * label,
         "auc_low": value - 0.5, "auc_high": value, "defined": True, "area_between": 0.5,
         "half_dose": 0.25 if label else math.nan, "off_damage": 0.125 if label else math.nan}
        for edit in ("ablate", "preserve")
        for ranking, value in (("random", 0.0), ("modes", -0.5), ("mean_contribution", -0.25))
        for label in (0, 1)
    ]  # fmt: skip
    areas = pd.DataFrame(rows)
    missing = (areas["ranking"] == "modes") & (areas["label"] == 1)
    areas.loc[missing, ["auc_difference", "half_dose", "off_damage"]] = math.nan
    areas.loc[missing, "defined"] = False
    return areas


def with_curves(run, comparison, areas=None):
    """The dictionary of the first site with other comparisons, and other summaries of curves."""
    (part,) = run.sites[0].parts
    part = replace(part, tables={**part.tables, "control_comparison": comparison})
    if areas is not None:
        part.__dict__["areas"] = areas  # a property that is worked out once
    return part


def test_every_ranking_is_in_the_table_of_control(run):
    comparison = compared("ablate", mean_contribution="better", random="equal")
    part = with_curves(run, comparison, summarised())
    lines = cells(tables.CURVES, *tables.curve_rows(part))
    names = [line["Ranking"] for line in lines]
    assert names == ["modes", "mean contribution", "random units"] * 2
    assert [line["Edit"] for line in lines] == ["ablate"] * 3 + ["preserve"] * 3
    said = [line["Modes against it"] for line in lines]
    assert said == ["", "better", "not told apart", "", "", ""]
    modes, mean = lines[:2]
    assert modes["Selectivity"].startswith("\N{MINUS SIGN}0.50")
    assert modes["Labels"] == "1"
    assert modes["Units for half"] == '\N{EN DASH} <span class="faint">0 of 2</span>'
    # Two labels, at -0.25 and -0.5: their mean may be that of either.
    low, middle, high = (f"\N{MINUS SIGN}{value}" for value in ("0.50", "0.38", "0.25"))
    assert mean["Selectivity"] == f"{middle} ({low} to {high})"
    assert mean["Labels"] == "2"
    assert mean["Units for half"] == '25.0 % <span class="faint">1 of 2</span>'
    assert (mean["Others lose"], mean["Gap of curves"]) == ("12 %", "0.50")


def test_the_table_and_the_words_stand_on_the_page(run, tmp_path, quick):
    comparison = compared("ablate", mean_contribution="better", random="equal")
    part = with_curves(run, comparison, summarised())
    write_pages(replace(run, sites=(replace(run.sites[0], parts=(part,)),)), tmp_path)
    text = shown(tmp_path / "sites" / "block1.html")
    heads = ("Modes against it", "1 of 2", "mean contribution")
    for said in (next(sentences.about_curves(part)), *heads):
        assert " ".join(said.split()) in text, said


def test_words_on_where_modes_win(run):
    won = compared("ablate", mean_contribution="better", random="better", mode_sum="worse")
    (said,) = sentences.about_curves(with_curves(run, won))
    numbers = "(\N{MINUS SIGN}0.250, \N{MINUS SIGN}0.500 to 0.125)"
    assert said == (
        "Units ablated by modes (replaced by zero) are more selective than mean contribution "
        f"{numbers}, random units {numbers}."
    )
    equal = compared("preserve", mean_contribution="equal", random="better")
    (said,) = sentences.about_curves(with_curves(run, equal))
    assert said.startswith("Units preserved by modes (replaced by zero) are more selective than ra")
    assert "; not told apart from mean contribution" in said
    assert said.endswith("So a ranking without a dictionary does as well here.")
    lost = compared("ablate", mean_contribution="worse", my_order="better", random="undefined")
    (said,) = sentences.about_curves(with_curves(run, lost))
    assert "more selective than my order" in said
    assert "random" not in said
    assert said.endswith("; less selective than mean contribution " + numbers + ". So a ranking "
                         "without a dictionary does better here.")  # fmt: skip
    chance = compared("ablate", random="equal")
    (said,) = sentences.about_curves(with_curves(run, chance))
    assert said.endswith("not told apart from random units " + numbers + ".")


def test_control_of_an_earlier_version_is_read(run, tmp_path):
    folder = RunFolder(shutil.copytree(run.folder.path, tmp_path / "run"))
    folder.table("control_comparison", "block1", "sae").unlink()
    file = folder.table("control", "block1", "sae")
    later = "_(?:low|high|edited|probability|logit|entropy)$|^off(?:_label)?$|^n_bootstrap$"
    curve = pd.read_parquet(file)
    curve.loc[:, ~curve.columns.str.contains(later)].to_parquet(file, index=False)
    recorded(folder)
    (part,) = read_run(folder.path).sites[0].parts
    assert part.areas["auc_low"].isna().all()
    assert list(sentences.about_curves(part)) == []
    assert {row["verdict"] for row in tables.curve_rows(part)} == {""}
    curve = part.tables.get("control")
    assert figures.control_figure(curve, edit="ablate", replacement="zero").axes


def test_a_dictionary_without_curves_has_no_table_of_control(run):
    blank = replace(run.sites[0].parts[0], tables={})
    assert list(tables.curve_rows(blank)) == []
    assert list(sentences.about_curves(blank)) == []


# --- several learners in one folder -------------------------------------------------------


@pytest.fixture(scope="module")
def both(run_folder, tmp_path_factory):
    """The run with a second learner at its first site, that comes before the first by name."""
    folder = RunFolder(shutil.copytree(run_folder, tmp_path_factory.mktemp("both") / "run"))
    store = Store.open(folder.store)
    modes = add_modes(folder, store, store.info("block1").site, "kmeans", KMeans(4))
    add_results(folder, small_inputs(bad=[7]), modes, "kmeans", ("control",))
    recorded(folder)
    return read_run(folder.path)


def test_every_line_is_of_one_learner(both):
    kmeans, sae = both.sites[0].parts
    lines = cells(tables.SITES, *tables.lines(both))
    assert [line["Learner"] for line in lines] == ["kmeans", "sae", "kmeans"]
    for line, part in zip(lines, (kmeans, sae), strict=False):
        metrics = part.dictionary.training.metrics["held_out"]
        assert line[tables.R2] == words.fixed(metrics.r2)
        assert line["Modes per input"] == f"{metrics.l0:.1f}"
        assert line["Modes in use"].startswith(f"{len(part.modes)} ")
        for edit in ("ablate", "preserve"):
            areas = part.areas[(part.areas["edit"] == edit) & (part.areas["ranking"] == "modes")]
            assert line[edit.capitalize()] == words.fixed(areas["auc_difference"].mean())
    assert lines[0][tables.R2] != lines[1][tables.R2]
    found = {fact.name: fact.value for fact in facts.of_run(both)}
    assert found["modes in use, sae"] == str(len(sae.modes))


def test_pages_name_each_of_several_learners(both, tmp_path, quick):
    write_pages(both, tmp_path)
    index, site = shown(tmp_path / "index.html"), shown(tmp_path / "sites" / "block1.html")
    assert "SiteLearnerUnits" in index
    for name in ("kmeans", "sae"):
        assert f"Control curves: {name}" in site
        assert f"Modes: {name}" in site
        assert f"modes in use, {name}" in site
        assert (tmp_path / "figures" / "block1" / f"{name}-ablate-zero-own.svg").exists()
        assert (tmp_path / "figures" / f"selectivity-ablate-zero-{name}.svg").exists()


# --- pages of other packages --------------------------------------------------------------


def other_page(folder: Path, applies) -> OtherPage:
    template = folder / "other.html.jinja"
    template.write_text(
        '{% extends "base.html.jinja" %}{% from "parts.html.jinja" import show_facts %}'
        "{% block main %}{{ show_facts(found) }}{{ page.name }} of {{ title }}{% endblock %}"
    )
    return OtherPage(
        name="Others <i>", file="other.html", template=template, applies=applies,
        values=lambda run, studio: {"found": [facts.Fact(str(len(run.sites)), "places")]},
    )  # fmt: skip


def test_a_package_adds_a_page(bare, tmp_path, monkeypatch, quick):
    folder = shutil.copytree(bare, tmp_path / "run")
    page = other_page(tmp_path, lambda folder: folder.plan.is_file())
    monkeypatch.setattr(registry, "names", lambda group: ("mine",) if "pages" in group else ())
    monkeypatch.setattr(registry, "find", lambda group, name: page)
    report = build_report(folder).parent
    assert shown(report / "other.html").count("2 places") == 1
    assert "Others <i> of A small run" in shown(report / "other.html")
    assert "other.html" in Page(report / "index.html").links
    assert "../other.html" in Page(report / "sites" / "block1.html").links
    (folder / "run.toml").unlink()
    report = build_report(folder).parent
    assert not (report / "other.html").exists()
    assert "other.html" not in Page(report / "index.html").links
    assert not (build_report(folder, pages=[]).parent / "other.html").exists()


# --- twins --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twinned(tmp_path_factory) -> Path:
    """A small run with both twins, and the statistics of the one that has any."""
    run = small_run(tmp_path_factory.mktemp("twinned") / "run", links=("stats", "fit"))
    folder, model, inputs = RunFolder(run), small_resnet(), small_inputs()
    store = Store.open(folder.store)
    for twin in (RandomWeights(seed=3), ShuffledLabels()):
        collect_twin(
            twin, model, inputs, SITES, of=store, progress=False, on_bad="skip",
            method=IntegratedGradients(steps=4), out=folder.twin(twin.name),
        )  # fmt: skip
    drawn = layer_statistics(Store.open(folder.twin("random-weights#3")))
    folder.write_table(drawn.assign(twin="random-weights#3"), "statistics_twins")
    recorded(folder)
    return run


def test_twins_stand_on_the_pages(twinned):
    report = build_report(twinned).parent
    index = shown(report / "index.html")
    assert "dashed lines are the same figures with random weights, seed 3." in index
    assert "Twinsrandom weights, seed 3; shuffled labels" in index
    assert "Random weights, seed 3" in index  # the title of their numbers
    assert "--twin random-weights" not in index
    assert "random weights, seed 3" in (report / "figures" / "hoyer.svg").read_text()
    drawn = read_run(twinned).twins[0].statistics["hoyer_contribution"].iloc[0]
    assert f"{drawn:.3f}" in index
    for site in ("block1", "block2%3Ainput"):
        text = shown(report / "sites" / f"{site}.html")
        assert "when the labels are shuffled, by" in text
        name = "sae" if site == "block1" else "kmeans"
        svg = (report / "figures" / site / f"{name}-correlations.svg").read_text()
        assert "shuffled labels" in svg


def test_chance_is_the_median_over_modes_on_training_rows(twinned):
    run = read_run(twinned)
    (fitted,) = run.sites[1].parts
    rows = ~fitted.modes.held_out
    labels = run.twins[1].store.labels
    member = [(labels[rows] == k).float() for k in range(3)]
    best = [
        float(torch.corrcoef(torch.stack([loading[rows], *member]))[0, 1:].max())
        for loading in fitted.modes.loadings.T
    ]
    torch.testing.assert_close(run.shuffled_best(fitted), torch.tensor(best), atol=1e-5, rtol=0)
    middle = float(torch.tensor(best).double().quantile(0.5))
    (said,) = sentences.about_chance(run, fitted)
    assert f"when the labels are shuffled, by {middle:.2f}:" in said
    for twins in ((), run.twins[:1]):
        assert list(sentences.about_chance(replace(run, twins=twins), fitted)) == []


def test_without_twins_the_page_says_how_to_add_one(report):
    text = shown(report / "index.html")
    assert "condec collect RUN --twin random-weights" in text
    assert "Is it the training?" not in text
    assert "<dt>Twins</dt>" not in (report / "index.html").read_text()


def test_the_page_says_which_statistic_the_method_does_not_give(report, run):
    said = "Left out: signs beyond a constant gradient. It needs contributions that are activation"
    assert said in shown(report / "index.html")
    assert sentences.undefined_statistics(run)[0].startswith(said)
    other = Store.open(run.store.path)
    other.recipe["method"] = {"name": "ActGrad"}
    assert sentences.undefined_statistics(replace(run, store=other)) == []


def test_trends_in_words(twinned):
    run, name = read_run(twinned), "random weights, seed 3"
    rising, falling, flat = [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.2, 0.1, 0.1, 0.2]
    columns = [
        "site",
        "hoyer_contribution",
        "dims95_contribution",
        "participation_ratio_contribution",
        "sign_correlation",
        "hoyer_activation",
    ]
    sites, above = ["a", "b", "c", "d"], [0.0, 0.3, 0.4, 0.5]
    real, other = (
        pd.DataFrame(dict(zip(columns, values, strict=True)))
        for values in (
            (sites, rising, rising, flat, falling, rising),
            (sites, above, falling, flat, flat, rising),
        )
    )
    twin = replace(run.twins[0], statistics=other)
    found = sentences.trends(replace(run, statistics=real, twins=(twin,)))
    begins = [text.partition(". It is above that of random weights, seed 3 at ") for text in found]
    also = "rises along the network, and with X as well: by itself no sign of training"
    # By hand: of the 16 ways to exchange X at some of the sites, as many have slopes so far apart.
    along, p = "along the network; with X it", "(slopes alike: p ="
    wanted = (
        f"Sparsity of contributions {also} {p} 0.38)",
        f"The dimension of contributions rises {along} falls {p} 0.12)",
        f"The participation ratio of contributions has no trend {along[:17]}, nor with X {p} 1)",
        f"The correlation of positive and negative part falls {along} has no trend {p} 0.25)",
    )
    assert tuple(begin.replace(name, "X") for begin, _, _ in begins) == wanted
    assert [end for _, _, end in begins] == [f"{n} of 4 sites." for n in (1, 2, 0, 3)]
    assert sentences.trends(run) == []  # two sites at most are no trend
    assert sentences.trends(replace(run, statistics=None)) == []


def test_twins_of_another_store_or_half_made_are_left_out(twinned, tmp_path):
    folder = RunFolder(shutil.copytree(twinned, tmp_path / "run"))
    shutil.rmtree(folder.path / "modes")
    recorded(folder)
    next(folder.twin("shuffled-labels").rglob("shard-*.json")).unlink()
    run = read_run(folder.path)
    assert [twin.twin["name"] for twin in run.twins] == ["RandomWeights"]
    said = "Left out: twin shuffled-labels: 1 of 1 shards are missing."
    assert next(sentences.warnings(run)) == said
    shutil.rmtree(folder.store)
    method = IntegratedGradients(steps=3)
    collect(small_resnet(), small_inputs(), SITES, out=folder.store, progress=False, method=method)
    run = read_run(folder.path)
    assert run.twins == ()
    assert {text.partition(": ")[2] for text in run.left_out} == {"it is of another store"}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: attribution.IntegratedGradients(steps="auto"), "steps to a tolerance of 0.01"),
        (
            lambda: attribution.IntegratedGradients(path="layer"),
            "along the layer's own path",
        ),
        (lambda: attribution.IntegratedGradients(baseline=attribution.Samples()), "8 samples of"),
        (lambda: attribution.UnitAblation(replacement="mean"), "every unit, replaced by mean"),
        (attribution.GradCAM, "activation times the mean gradient of its unit"),
    ],
)
def test_methods_are_put_into_words(make, said: str) -> None:  # type: ignore[no-untyped-def]
    assert said in words.method_words(make().to_dict())


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (targets.Contrast(frozen=True), "the largest logit of the classes at the input less"),
        (targets.Margin(against="largest"), "own label less the largest of the others"),
        (targets.Entropy(), "the entropy of the output"),
        (targets.Sum(), "the sum of all outputs"),
        (targets.Sum((1, 2)), "the sum of outputs 1, 2"),
        (targets.Custom(torch.sum, "total"), "the function total"),
    ],
)
def test_targets_are_put_into_words(target, said: str) -> None:  # type: ignore[no-untyped-def]
    assert said in words.target_words(target.to_dict())


def test_every_method_target_and_baseline_has_words() -> None:
    from condec.attribution import texts as methods
    from condec.attribution.targets import texts

    assert set(methods.METHODS.classes) == set(words.METHODS)
    assert set(methods.BASELINES.classes) == set(words.BASELINES)
    assert {*texts.TARGETS.classes, "Custom"} == set(words.TARGETS)


# --- what else edits do -------------------------------------------------------------------


def with_side_effects(run: Path) -> Path:
    """Tables of what else edits do, at the first site."""
    folder = RunFolder(run)
    modes = Modes.load(folder.modes("block1", "sae"), Store.open(folder.store))
    names = tuple(json.loads(folder.labels.read_text()))
    data = replace(small_inputs(bad=[7]), label_names=names)
    model = small_resnet().requires_grad_(requires_grad=False)
    of = {"model": model, "data": data, "modes": modes}
    pairs = [tuple(modes.ids[:2].tolist())]
    matrices = [effects.control_matrix(**of, fraction=0.5, edit=e) for e in ("ablate", "preserve")]
    made = {
        "control_matrix": pd.concat([one.to_frame() for one in matrices]),
        "steering": effects.steering_curve(**of, strengths=(0.5, 1.0), n_random=2),
        "interactions": effects.mode_interactions(**of, fraction=0.5, pairs=pairs, n_bootstrap=20),
    }
    for kind, found in made.items():
        folder.write_table(found, kind, "block1", "sae")
    folder.superclasses.write_text(json.dumps([EVIL[0], EVIL[0], "y"]))
    recorded(folder)
    return run


@pytest.fixture(scope="module")
def changed_more(run_folder, tmp_path_factory) -> Path:
    """The run under hostile names, with what else edits did."""
    folder = RunFolder(shutil.copytree(run_folder, tmp_path_factory.mktemp("effects") / "run"))
    folder.labels.write_text(json.dumps(EVIL))
    folder.plan.write_text('[report]\ntitle = "<script>alert(3)</script>"\n')
    return with_side_effects(folder.path)


@pytest.fixture(scope="module")
def evil_report(changed_more) -> Path:
    return build_report(changed_more).parent


@pytest.fixture(scope="module")
def more(changed_more):
    """The dictionary of the first site, with what else edits did."""
    return read_run(changed_more).sites[0].parts[0]


def only(part, **found):
    return list(sentences.about_side_effects(replace(part, tables=found), 4))


def test_superclasses_are_read_with_their_intervals(more) -> None:
    rows = [("unedited", "members", 0.9), ("unedited", "others", 0.8), ("modes", "members", 0.1),
            ("modes", "others", 0.7), ("mean_contribution", "members", 0.3)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["ranking", "group", "top1"])
    table = table.assign(superclass="bird", edit="ablate")
    table["top1_low"], table["top1_high"] = table["top1"] - 0.05, table["top1"] + 0.05
    (sentence,) = sentences.about_side_effects(
        replace(more, tables={"superclass_control": table}), 4
    )
    assert sentence == (
        "Ablating the units of superclass bird leaves an accuracy of its labels 10 % (before 90 %, "
        "95 % interval 5 % to 15 %) and of others 70 % (before 80 %, 95 % interval 65 % to 75 %); "
        "by mean contribution, without modes, its labels 30 %."
    )


def test_matrices_are_read_as_they_were_measured(more):
    again = sentences.matrices(more, 4)
    assert [one.edit for one in again] == ["ablate", "preserve"]
    found = pd.concat([one.to_frame() for one in again], ignore_index=True)
    pd.testing.assert_frame_equal(found, more.tables.get("control_matrix"), check_dtype=False)
    assert only(more) == []


def test_what_else_changed_stands_on_the_page_of_its_site(changed_more, evil_report):
    page = Page(evil_report / "sites" / "block1.html")
    assert "sae-effects" in page.ids
    assert "What else changed" not in shown(evil_report / "sites" / "block2%3Ainput.html")
    run = read_run(changed_more)
    for sentence in sentences.about_side_effects(run.sites[0].parts[0], 4, run.hierarchy):
        assert " ".join(sentence.split()) in " ".join(page.text.split()), sentence
    drawn = [name for name in page.resources if "/figures/block1/sae-" in name]
    wanted = {
        "matrix-ablate-zero-accuracy", "matrix-ablate-zero-logit", "interactions", "steering",
        "matrix-preserve-zero-accuracy", "matrix-preserve-zero-logit",
    }  # fmt: skip
    assert {Path(name).stem.removeprefix("sae-") for name in drawn} >= wanted


def test_words_on_matrices(more):
    matrix = more.tables.get("control_matrix")
    matrix = matrix[matrix["edit"] == "ablate"].copy()
    own = matrix["edited"] == matrix["label"]
    matrix["accuracy"] = own.map({True: 0.25, False: 0.75})
    pair = [{0, 1}, {0, 2}]
    loss = [-2.0 if {a, b} == pair[0] else 1.0 if {a, b} == pair[1] else -0.5
            for a, b in zip(matrix["edited"], matrix["label"], strict=True)]  # fmt: skip
    matrix["logit"] = loss
    first, shared = only(more, control_matrix=matrix)
    assert first == (
        "With 2 of 4 units of a label ablated (they are set to 0), it keeps 25 % of its accuracy "
        "and another label 75 %, on average."
    )
    names = [f"{EVIL[1]} and {EVIL[0]} (2.00)", f"{EVIL[2]} and {EVIL[1]} (0.50)"]
    assert shared == (
        "Labels that share most, by the loss of output that ablating either does to the other: "
        f"{', '.join(names)}."
    )
    groups = Hierarchy(("x", "x", "y"))
    part = replace(more, tables={"control_matrix": matrix})
    (*_, agreement) = sentences.about_side_effects(part, 4, groups)
    # Of three labels a third of the orders puts the same two together.
    assert agreement.startswith("No sign that labels of one superclass share more than labels of")
    assert "correlation of sharing with a common superclass 0.87 (p = 0.3" in agreement
    too_few = Hierarchy(("x", "x", ""))
    assert len(list(sentences.about_side_effects(part, 4, too_few))) == 2


def test_words_on_steering_name_a_dictionary_that_adds_nothing(more):
    for mode, end in (
        (0.5, "does as well."),
        (0.505, "does as well."),
        (0.75, "random directions."),
    ):
        curve = more.tables.get("steering").copy()
        curve["converted"] = curve["direction"].map({"activation": mode}).fillna(0.5)
        (said,) = only(more, steering=curve)
        assert said.startswith("Steered at strength 1, inputs of other labels become the label: ")
        assert said.endswith(end)


def test_words_on_interactions_are_of_the_output(more):
    found = more.tables.get("interactions").copy()
    found[["single_a", "single_b", "interaction", "low", "high"]] = [2.0, -4.0, -1.0, -2.0, -0.5]
    found.loc[found["quantity"] == "probability", "interaction"] = 9.0
    (said,) = only(more, interactions=found)
    assert said == (
        "Ablating one pair of modes together differs from the sum of what each does alone by 1.00 "
        "of a label's output, at the median; a mode alone changes it by 3.00. Of 3 such "
        "differences (a pair and a label each), 3 are told apart from 0 by their 95 % interval."
    )
