"""The report: what stands on the pages, that nothing comes from outside, and bad run folders."""

import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote

import pandas as pd
import pytest
import torch

from condec import attribution, effects
from condec.attribution import IntegratedGradients, targets
from condec.basis.errors import StoreError
from condec.modes.labels import Hierarchy
from condec.modes.modes import Modes
from condec.report import build_report, figures
from condec.report.build import _write_pages
from condec.report.cards import mode_lines, stems
from condec.report.checks import chance, check_lines, control_rows, numbers, sentences
from condec.report.control import control_lines, control_sentences
from condec.report.reading import read_run
from condec.report.side_effects import matrices, side_effect_sentences
from condec.report.summary import facts, site_line, title, trends, warnings
from condec.report.words import method_words, target_words
from condec.store.collection import collect
from condec.store.statistics import layer_statistics
from condec.store.store import Store
from condec.store.twins import RandomWeights, ShuffledLabels, collect_twin
from condec.testing.models import small_resnet
from condec.testing.runs import SITES, small_inputs, small_run

EVIL = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "{{ 7 * 7 }} & 'x'")
VOID = {"meta", "link", "img", "br", "hr", "wbr", "input"}
SHAPES = {"svg", "g", "path", "line"}


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


def pages(folder: Path) -> list[Page]:
    return [Page(file) for file in sorted(folder.rglob("*.html"))]


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
    assert names == ["index.html", "sites/block1.html", "sites/block2%3Ainput.html"]
    for page in found:
        for link in page.links + page.resources:
            if link.startswith("data:,"):
                continue
            place, _, anchor = link.partition("#")
            target = page.file.parent / unquote(place) if place else page.file
            assert target.is_file(), f"{page.file.name}: {link}"
            if anchor:
                assert anchor in Page(target).ids


def test_every_file_is_used(report):
    wanted = {report / "index.html"}
    for page in pages(report):
        for link in page.links + page.resources:
            if not link.startswith(("data:", "#")):
                wanted.add((page.file.parent / unquote(link.partition("#")[0])).resolve())
    assert {file for file in report.rglob("*") if file.is_file()} == wanted


def test_nothing_is_loaded_from_outside(report):
    for page in pages(report):
        for resource in page.resources:
            assert not re.match(r"(?:[a-z]+:)?//|/", resource), resource
        assert not re.search(r"https?:", page.file.read_text()), page.file
    for file in report.rglob("*"):
        if file.suffix in {".css", ".js"}:
            assert not re.search(r"https?:|url\(|@import|//[a-z]", file.read_text()), file
        if file.suffix == ".svg":
            text = file.read_text()
            assert not re.search(r"(?:href|src)\s*=\s*[\"'](?!#|data:)", text), file


def test_ids_are_unique_and_images_have_words(report):
    for page in pages(report):
        assert len(page.ids) == len(set(page.ids))
        text = page.file.read_text()
        assert not re.search(r"<img(?![^>]*\balt=\"[^\"]+\")", text)


def test_same_run_gives_the_same_bytes_and_old_files_go(run_folder, report):
    before = {f.relative_to(report): f.read_bytes() for f in report.rglob("*") if f.is_file()}
    (report / "stale.html").write_text("old")
    build_report(run_folder)
    after = {f.relative_to(report): f.read_bytes() for f in report.rglob("*") if f.is_file()}
    assert before == after
    assert not [p.name for p in run_folder.iterdir() if p.name.startswith(".report")]


def test_a_report_that_fails_leaves_the_old_one(run_folder, report, monkeypatch):
    def fail(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(StoreError, match=r"report: the disk is full"):
        build_report(run_folder)
    monkeypatch.undo()
    assert "A small run" in (report / "index.html").read_text()
    assert not [p.name for p in run_folder.iterdir() if p.name.startswith(".report")]


# --- what stands on the pages -------------------------------------------------------------


def test_summary_says_what_was_run(report, run_folder):
    text = " ".join(Page(report / "index.html").text.split())
    store = Store.open(run_folder / "contributions.zarr")
    right = (store.labels == store.predictions).float().mean().item()
    for words in (
        "A small run",
        "2026-03-01",
        "59 inputs",
        "1 skipped",
        f"{100 * right:.1f} %",
        "1 of 60 inputs were left out: 7.",
        "integrated gradients, 4 steps from zeros",
        "the largest logit",
        "SmallResNet",
        "block2:input",
        store.recipe["condec"],
    ):
        assert words in text, words


def test_facts_are_the_stores_figures(run):
    found = {fact.name: fact.value for fact in facts(run)}
    middle = [run.store.completeness()[site.key].quantile(0.5) for site in run.sites]
    assert found["completeness"] == f"{torch.stack(middle).quantile(0.5):.2f}"
    assert found["sites"] == "2"
    alive = sum(len(one.modes) for site in run.sites for one in site.fitted)
    assert found["modes in use"] == str(alive)


def test_site_line_holds_held_out_figures(run):
    site = run.sites[1]
    line, fitted = site_line(site), site.fitted[0]
    assert line.r2 == fitted.dictionary.training.metrics["held_out"].r2
    train = fitted.modes.correlation(split="train")
    held_out = fitted.modes.correlation(split="held_out")
    wanted = [float(held_out[m, train[m].argmax()]) for m in range(len(fitted.modes))]
    assert line.label_correlation == pytest.approx(float(torch.tensor(wanted).quantile(0.5)))
    rows = site.areas[(site.areas["edit"] == "ablate") & (site.areas["ranking"] == "modes")]
    assert line.ablate == pytest.approx(rows["auc_difference"].mean(), nan_ok=True)


def without_held_out(run, number):
    """The run as if the dictionaries of its first sites had held nothing out."""
    sites = list(run.sites)
    for place, site in enumerate(sites[:number]):
        fitted = []
        for one in site.fitted:
            training = one.dictionary.training
            metrics = {"train": training.metrics["train"]}
            dictionary = replace(one.dictionary, training=replace(training, metrics=metrics))
            fitted.append(replace(one, dictionary=dictionary))
        sites[place] = replace(site, fitted=tuple(fitted))
    return replace(run, sites=tuple(sites))


@pytest.mark.parametrize(
    ("number", "words"), [(0, "held out"), (1, "held out or training"), (2, "training")]
)
def test_figures_say_which_rows_they_are_of(run, tmp_path, number, words):
    changed = without_held_out(run, number)
    names = [fact.name for fact in facts(changed)]
    assert f"R\N{SUPERSCRIPT TWO}, {words}" in names
    (tmp_path / "report").mkdir()
    _write_pages(changed, tmp_path / "report")
    index = (tmp_path / "report" / "index.html").read_text()
    assert f'title="{words}">R&sup2;' in index
    assert f'title="modes in use for one input, {words}"' in index
    for place, site in enumerate(changed.sites):
        split = "training" if place < number else "held out"
        line, metrics = site_line(site), site.fitted[0].dictionary.training.metrics
        assert line.split == split
        assert line.r2 == metrics["held_out" if split == "held out" else "train"].r2
        page = Page(tmp_path / "report" / "sites" / f"{site.folder}.html")
        assert f"R\N{SUPERSCRIPT TWO}, {split}\n" in page.text


def test_modes_are_ordered_by_training_correlation(run, report):
    site = run.sites[1]
    lines = mode_lines(run, site.fitted[0])
    assert [line.train for line in lines] == sorted((x.train for x in lines), reverse=True)
    text = (report / "sites" / f"{site.folder}.html").read_text()
    shown = [int(number) for number in re.findall(r"kmeans-mode-(\d+)", text)]
    ordered = [line.id for line in lines if line.id in shown]
    assert shown == ordered
    assert len(shown) == 3
    use = (site.fitted[0].modes.loadings[~site.fitted[0].modes.held_out] != 0).float().mean(0)
    assert lines[0].use == pytest.approx(float(use[lines[0].row]))


def test_site_page_has_every_part(report):
    page = Page(report / "sites" / "block2%3Ainput.html")
    text = " ".join(page.text.split())
    for words in ("Control", "held out", "grand mean", "Cosine", "All modes in use", "KMeans"):
        assert words in text, words
    images = " ".join(page.resources)
    for part in ("ablate-zero.svg", "preserve-zero.svg", "ablate-labels.svg", "-total.png"):
        assert part in images, part
    assert images.count("-positive.png") == images.count("-negative.png") == 9


def test_pictures_are_kept_once(report):
    pictures = list((report / "pictures").iterdir())
    assert len(pictures) == len({file.read_bytes() for file in pictures})


def test_names_are_escaped_everywhere(tmp_path):
    folder = small_run(tmp_path / "run", label_names=EVIL)
    (folder / "run.toml").write_text('[report]\ntitle = "<script>alert(3)</script>"\n')
    report = build_report(folder).parent
    for page in pages(report):
        assert page.tags.count("script") == 1
        assert not [name for name in page.attributes if name.startswith("on")]
        assert "x" not in page.resources
        assert "alert(3)" in page.text
    site = (
        Page(report / "sites" / "block1.html").text
        + Page(report / "sites" / "block2%3Ainput.html").text
    )
    for name in EVIL:
        assert name in site
    for file in report.rglob("*.svg"):
        assert "<script" not in file.read_text()


# --- parts that are missing ---------------------------------------------------------------


@pytest.mark.parametrize(
    "links", [(), ("stats",), ("fit",), ("fit", "control"), ("fit", "map"), ("stats", "fit", "map")]
)
def test_missing_parts_are_left_out(tmp_path, links):
    folder = small_run(tmp_path / "run", links=links, label_names=None)
    report = build_report(folder).parent
    text = " ".join(page.text for page in pages(report))
    assert ("Along the network" in text) == ("stats" in links)
    assert ("No dictionary was fitted here" in text) == ("fit" not in links)
    assert ("Mode " in text) == ("fit" in links)
    assert ("share one scale" in text) == ("map" in links)
    assert (report / "figures" / "block1-ablate-zero.svg").exists() == ("control" in links)


def test_without_labels(tmp_path):
    report = build_report(small_run(tmp_path / "run", labelled=False)).parent
    text = Page(report / "index.html").text
    assert "The inputs have no labels" in text
    assert "accuracy" not in text.split("Words")[0]
    assert "Mode " in Page(report / "sites" / "block1.html").text


def test_without_plan_and_log(tmp_path):
    folder = small_run(tmp_path / "run", links=())
    (folder / "run.toml").unlink()
    (folder / "log.jsonl").write_text('{"time": "2026-0')
    (folder / "analysis" / "labels.json").unlink()
    text = Page(build_report(folder)).text
    assert "SmallResNet" in text
    assert "run.toml" not in text


def test_title_falls_back_to_model_and_data(run):
    plan = {"model": {"spec": "digits"}, "data": {"source": "npz:a.npz"}}
    assert title(replace(run, plan=plan)) == "digits on npz:a.npz"


# --- warnings -----------------------------------------------------------------------------


def changed(run, values):
    sites = (replace(run.sites[0], completeness=torch.tensor(values)), *run.sites[1:])
    return list(warnings(replace(run, sites=sites)))


def test_warnings_about_completeness(run):
    fine = [text for text in changed(run, [0.99, 1.0, 1.01]) if "block1" in text]
    assert not [text for text in fine if "ompleteness" in text]
    assert any("add up" in text and "block1 0.80" in text for text in changed(run, [0.8] * 5))
    wide = changed(run, [0.0, 1.0, 1.0, 1.0, 2.0])
    assert any("differs much" in text and "block1" in text for text in wide)


def test_warning_about_dead_modes(run):
    one = run.sites[1].fitted[0]
    dead = replace(one, modes=replace(one.modes, n_modes=2 * len(one.modes)))
    sites = (run.sites[0], replace(run.sites[1], fitted=(dead,)))
    found = [text for text in warnings(replace(run, sites=sites)) if "dead" in text]
    assert "block2:input 50 % of 8" in found[0]
    assert "block2:input" not in " ".join(t for t in warnings(run) if "dead" in t)


def test_dead_modes_are_those_of_held_out_rows(run):
    one = run.sites[1].fitted[0]
    loadings = one.modes.loadings.clone()
    loadings[one.modes.held_out] = 0.0
    loadings[one.modes.held_out.nonzero()[0], 0] = 1.0
    dead = replace(one, modes=replace(one.modes, loadings=loadings))
    sites = (run.sites[0], replace(run.sites[1], fitted=(dead,)))
    assert dead.dead_share == 1 - 1 / one.modes.n_modes
    changed = replace(run, sites=sites)
    (said,) = [text for text in warnings(changed) if "no held-out input" in text]
    assert f"block2:input 75 % of {one.modes.n_modes}" in said
    assert check_lines(changed)[1].many_dead
    assert any("75 % of the 4 modes are dead" in text for text in sentences(changed, dead))
    nowhere = replace(one.modes, held_out=torch.zeros_like(one.modes.held_out), n_modes=16)
    sites = (replace(run.sites[1], fitted=(replace(one, modes=nowhere),)),)
    assert "used by no input: block2:input 75 % of 16." in " ".join(
        warnings(replace(run, sites=sites))
    )


# --- is it more than chance? --------------------------------------------------------------


def test_numbers_stand_side_by_side(run):
    fitted = run.sites[1].fitted[0]
    metrics, found = fitted.dictionary.training.metrics, {}
    for line in numbers(fitted):
        found[line.name] = (line.train, line.held_out)
    assert found["Inputs"] == tuple(str(metrics[s].n_rows) for s in ("train", "held_out"))
    for name, key, digits in (
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
    dead = without_held_out(run, 2).sites[1].fitted[0]
    assert {line.held_out for line in numbers(dead)} == {"\N{EN DASH}"}
    assert numbers(replace(dead, dictionary=replace(dead.dictionary, training=None))) == []


def controls_of(run, **r2):
    one = run.sites[1].fitted[0]
    table = one.controls[one.controls["rival"].isin(r2)].copy()
    table["r2"] = table["rival"].map(r2)
    table["label_correlation"] = [0.9] + [0.1] * (len(table) - 1)
    return replace(run, sites=(replace(run.sites[1], fitted=(replace(one, controls=table),)),))


def test_controls_that_do_as_well_are_named(run):
    equal = controls_of(run, dictionary=0.8, shuffled_units=0.3, pca=0.79)
    fitted = equal.sites[0].fitted[0]
    assert check_lines(equal)[0].controls == "PCA (R\N{SUPERSCRIPT TWO})"
    rows = control_rows(fitted)
    assert [row["as_good"] for row in rows] == ["", "", "R\N{SUPERSCRIPT TWO}"]
    assert [row["name"] for row in rows] == ["this dictionary", "shuffled units", "PCA"]
    assert any(
        text.startswith("PCA at equal L0 does as well on held-out rows: R2 0.79")
        for text in sentences(equal, fitted)
    )
    wanted = "Controls do as well as the dictionary: block2:input: PCA (R\N{SUPERSCRIPT TWO})."
    assert wanted in list(warnings(equal))
    worse = controls_of(run, dictionary=0.8, shuffled_units=0.3, pca=0.5)
    assert check_lines(worse)[0].controls == "none"
    assert any("No control does as well" in t for t in sentences(worse, worse.sites[0].fitted[0]))
    assert not [text for text in warnings(worse) if "Controls do" in text]


def test_stability_is_said_for_all_and_for_each(run, report):
    site = run.sites[1]
    fitted, line = site.fitted[0], check_lines(run)[1]
    table = fitted.stability
    assert line.seeds == pytest.approx(table["seed_cosine"].mean())
    assert line.halves == pytest.approx(table["half_cosine"].mean())
    both = ((table["seed_cosine"] >= 0.9) & (table["half_cosine"] >= 0.9)).sum()
    assert line.stable == f"{both} of {len(fitted.modes)}"
    (said,) = [text for text in sentences(run, fitted) if "4 other seeds" in text]
    assert f"a cosine of {table['seed_cosine'].mean():.2f} on average" in said
    for one in mode_lines(run, fitted):
        row = table.set_index("mode").loc[one.id]
        assert (one.seeds, one.halves) == (row["seed_cosine"], row["half_cosine"])
    text = " ".join(Page(report / "sites" / f"{site.folder}.html").text.split())
    first = mode_lines(run, fitted)[0]
    assert f"found again with a cosine of {first.seeds:.2f} by other seeds" in text
    assert (report / "figures" / f"{site.folder}-kmeans-stability.svg").is_file()


def test_what_was_not_checked_is_not_said(run, report):
    line = check_lines(run)[0]
    assert (line.stable, line.controls) == ("", "")
    assert math.isnan(line.seeds)
    text = " ".join(Page(report / "sites" / "block1.html").text.split())
    assert "found again" not in text
    assert "other seeds" not in text
    index = " ".join(Page(report / "index.html").text.split())
    assert "Is it more than chance?" in index
    assert "add what is missing" not in index  # one site has both


def test_the_page_says_how_to_check(tmp_path):
    index = Page(build_report(small_run(tmp_path / "run", links=("fit",)))).text
    assert "stability_seeds = 5 under [fit] in run.toml" in " ".join(index.split())


def test_stability_of_dead_modes(run):
    one = run.sites[1].fitted[0]
    table = one.stability.assign(seed_cosine=math.nan, half_cosine=math.nan, chance=math.nan)
    assert "Stability was measured, but every mode is dead." in list(
        sentences(run, replace(one, stability=table))
    )


def test_correlations_that_are_not_defined_are_not_shown(run):
    one = run.sites[1].fitted[0]
    rows = (one.modes.store.labels != 2) & one.modes.held_out
    some = replace(one, modes=replace(one.modes, held_out=rows, _correlations={}))
    assert some.held_out_correlation[:, 2].isnan().all()
    assert some.held_out_correlation[:, :2].isfinite().all()


# --- atoms --------------------------------------------------------------------------------


def test_stems_reach_their_values():
    drawn = stems(torch.tensor([1.0, -1.0, 0.5]), [0])
    assert re.findall(r"M(\S+) ", drawn.chosen) == ["60.0"]
    top, middle, bottom = 3.0, drawn.zero, drawn.height - 3.0
    assert middle == pytest.approx((top + bottom) / 2)
    assert drawn.chosen.endswith(f"V{top:.1f}")
    assert drawn.below.endswith(f"V{bottom:.1f}")
    assert drawn.above.endswith(f"V{middle - (middle - top) / 2:.1f}")


def test_stems_of_many_units_keep_the_largest():
    atom = torch.zeros(4000)
    atom[1234] = 5.0
    atom[1235] = -2.0
    drawn = stems(atom, [])
    assert drawn.above.count("M") == 1
    assert float(re.findall(r"M(\S+) ", drawn.above)[0]) == pytest.approx(1234.5 * 360 / 4000, 0.1)


def test_stems_of_nothing():
    assert stems(torch.zeros(3), [1]).above == ""


# --- run folders that cannot be -----------------------------------------------------------


def test_no_store(tmp_path):
    with pytest.raises(StoreError, match=r"expected a run folder with contributions\.zarr"):
        build_report(tmp_path)


def test_incomplete_store(tmp_path):
    folder = small_run(tmp_path / "run", links=())
    next((folder / "contributions.zarr" / "manifest").glob("shard-*.json")).unlink()
    with pytest.raises(StoreError, match="incomplete"):
        build_report(folder)
    assert not (folder / "report").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("analysis/control.parquet", r"control\.parquet: not readable as parquet"),
        ("analysis/labels.json", r"labels\.json: not JSON"),
        ("run.toml", r"run\.toml: not TOML"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, message):
    folder = small_run(tmp_path / "run", links=())
    (folder / name).write_text("[[[ {")
    with pytest.raises(StoreError, match=message):
        build_report(folder)


def test_empty_tables_count_as_missing(tmp_path):
    folder = small_run(tmp_path / "run", links=())
    pd.DataFrame({"site": []}).to_parquet(folder / "analysis" / "statistics.parquet")
    assert "Along the network" not in Page(build_report(folder)).text


def test_nan_is_a_dash(run):
    blank = replace(run.sites[0], fitted=(), areas=None, curve=None, completeness=None)
    line = site_line(blank)
    assert math.isnan(line.r2)
    assert line.split == ""
    assert math.isnan(line.ablate)
    assert json.dumps(line.n_modes) == "0"


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
    table = pd.DataFrame(rows)
    missing = (table["ranking"] == "modes") & (table["label"] == 1)
    table.loc[missing, ["auc_difference", "half_dose", "off_damage"]] = math.nan
    table.loc[missing, "defined"] = False
    return table


def test_every_ranking_is_in_the_table_of_control(run):
    comparison = compared("ablate", mean_contribution="better", random="equal")
    site = replace(run.sites[0], areas=summarised(), comparison=comparison)
    lines = control_lines(site)
    assert [line.ranking for line in lines] == ["modes", "mean contribution", "random units"] * 2
    assert [line.edit for line in lines] == ["ablate"] * 3 + ["preserve"] * 3
    assert [line.verdict for line in lines] == ["", "better", "equal", "", "", ""]
    modes, mean = lines[:2]
    assert modes.selectivity.startswith("\N{MINUS SIGN}0.50")
    assert (modes.n_labels, modes.n_half, modes.half_dose) == (1, "0 of 2", "\N{EN DASH}")
    # Two labels, at -0.25 and -0.5: their mean may be that of either.
    low, middle, high = (f"\N{MINUS SIGN}{value}" for value in ("0.50", "0.38", "0.25"))
    assert mean.selectivity == f"{middle} ({low} to {high})"
    assert (mean.n_labels, mean.n_half, mean.half_dose) == (2, "1 of 2", "25.0 %")
    assert (mean.off_damage, mean.area_between) == ("12 %", "0.50")


def test_the_table_and_the_words_stand_on_the_page(run, tmp_path):
    comparison = compared("ablate", mean_contribution="better", random="equal")
    site = replace(run.sites[0], areas=summarised(), comparison=comparison)
    _write_pages(replace(run, sites=(site,), areas=summarised()), tmp_path)
    text = Page(tmp_path / "sites" / "block1.html").text
    for words in (next(control_sentences(site)), "Modes are", "1 of 2", "mean contribution"):
        assert " ".join(words.split()) in " ".join(text.split()), words


def test_words_on_where_modes_win(run):
    site = run.sites[0]
    won = compared("ablate", mean_contribution="better", random="better", mode_sum="worse")
    (said,) = control_sentences(replace(site, comparison=won))
    numbers = "(\N{MINUS SIGN}0.250, \N{MINUS SIGN}0.500 to 0.125)"
    assert said == (
        "Units ablated by modes (replaced by zero) are more selective than mean contribution "
        f"{numbers}, random units {numbers}."
    )
    equal = compared("preserve", mean_contribution="equal", random="better")
    (said,) = control_sentences(replace(site, comparison=equal))
    assert said.startswith("Units preserved by modes (replaced by zero) are more selective than ra")
    assert "; not told apart from mean contribution" in said
    assert said.endswith("So a ranking without a dictionary does as well here.")
    lost = compared("ablate", mean_contribution="worse", my_order="better", random="undefined")
    (said,) = control_sentences(replace(site, comparison=lost))
    assert "more selective than my order" in said
    assert "random" not in said
    assert said.endswith("; less selective than mean contribution " + numbers + ". So a ranking "
                         "without a dictionary does better here.")  # fmt: skip
    chance = compared("ablate", random="equal")
    (said,) = control_sentences(replace(site, comparison=chance))
    assert said.endswith("not told apart from random units " + numbers + ".")


def test_control_of_an_earlier_version_is_read(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    (folder / "analysis" / "control_comparison.parquet").unlink()
    file = folder / "analysis" / "control.parquet"
    kept = [
        "site", "label", "label_name", "ranking", "edit", "replacement", "fraction", "n_units",
        "target_accuracy", "off_accuracy", "target_std", "off_std", "defined", "target_unedited",
        "off_unedited", "n_target", "n_off", "n_draws", "mode", "correlation",
    ]  # fmt: skip
    pd.read_parquet(file)[kept].to_parquet(file, index=False)
    site = read_run(folder).sites[0]
    assert site.areas["auc_low"].isna().all()
    assert list(control_sentences(site)) == []
    assert {line.verdict for line in control_lines(site)} == {""}
    assert figures.control_figure(site.curve, edit="ablate", replacement="zero").axes


def test_a_site_without_curves_has_no_table_of_control(run):
    blank = replace(run.sites[0], areas=None, curve=None, comparison=None)
    assert control_lines(blank) == []
    assert list(control_sentences(blank)) == []


# --- controls -----------------------------------------------------------------------------


def with_controls(folder: Path, **options) -> Path:
    """A small run with both controls, and the statistics of the one that has any."""
    folder = small_run(folder, **options)
    store, model, inputs = Store.open(folder / "contributions.zarr"), small_resnet(), small_inputs()
    for control in (RandomWeights(seed=3), ShuffledLabels()):
        collect_twin(
            control, model, inputs, SITES, of=store, progress=False,
            method=IntegratedGradients(steps=4), on_bad="skip",
            out=folder / "twins" / quote(control.name, safe="") / "contributions.zarr",
        )  # fmt: skip
    drawn = Store.open(folder / "twins" / "random-weights%233" / "contributions.zarr")
    table = layer_statistics(drawn).assign(twin="random-weights#3")
    table.to_parquet(folder / "analysis" / "statistics_twins.parquet", index=False)
    return folder


@pytest.fixture(scope="module")
def controlled(tmp_path_factory) -> Path:
    return with_controls(tmp_path_factory.mktemp("controlled") / "run", links=("stats", "fit"))


def test_controls_stand_beside_the_run(controlled):
    report = build_report(controlled).parent
    index = " ".join(Page(report / "index.html").text.split())
    assert "dashed lines are the same figures with random weights, seed 3." in index
    assert "Controlsrandom weights, seed 3; shuffled labels" in index
    assert "Random weights, seed 3" in index  # the title of their numbers
    assert "--twin random-weights" not in index
    assert "random weights, seed 3" in (report / "figures" / "hoyer.svg").read_text()
    drawn = read_run(controlled).twins[0].statistics["hoyer_contribution"].iloc[0]
    assert f"{drawn:.3f}" in index
    for site in ("block1", "block2%3Ainput"):
        text = " ".join(Page(report / "sites" / f"{site}.html").text.split())
        assert "when the labels are shuffled, by" in text
        name = "sae" if site == "block1" else "kmeans"
        svg = (report / "figures" / f"{site}-{name}-correlations.svg").read_text()
        assert "shuffled labels" in svg


def test_chance_is_the_median_over_modes_on_training_rows(controlled):
    run = read_run(controlled)
    fitted = run.sites[1].fitted[0]
    rows = ~fitted.modes.held_out
    labels = run.twins[1].store.labels
    best = [
        max(
            float(torch.corrcoef(torch.stack([loading[rows], (labels[rows] == k).float()]))[0, 1])
            for k in range(3)
        )
        for loading in fitted.modes.loadings.T
    ]
    torch.testing.assert_close(run.shuffled_best(fitted), torch.tensor(best), atol=1e-5, rtol=0)
    middle = float(torch.tensor(best).double().quantile(0.5))
    assert f"when the labels are shuffled, by {middle:.2f}:" in chance(run, fitted)
    assert chance(replace(run, twins=()), fitted) == ""
    assert chance(replace(run, twins=run.twins[:1]), fitted) == ""


def test_without_controls_the_page_says_how_to_add_one(report):
    text = " ".join(Page(report / "index.html").text.split())
    assert "condec collect RUN --twin random-weights" in text
    assert "Is it the training?" not in text
    assert "<dt>Controls</dt>" not in (report / "index.html").read_text()


def test_trends_in_words(controlled):
    run, words = read_run(controlled), "random weights, seed 3"
    names = ["a", "b", "c", "d"]
    rising, falling = [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]
    flat = [0.2, 0.1, 0.1, 0.2]
    real = pd.DataFrame({
        "site": names, "hoyer_contribution": rising, "dims95_contribution": rising,
        "participation_ratio_contribution": flat, "sign_correlation": falling,
        "hoyer_activation": rising,
    })  # fmt: skip
    other = pd.DataFrame({
        "site": names, "hoyer_contribution": [0.0, 0.3, 0.4, 0.5], "dims95_contribution": falling,
        "participation_ratio_contribution": flat, "sign_correlation": flat,
        "hoyer_activation": rising,
    })  # fmt: skip
    twin = replace(run.twins[0], statistics=other)
    found = trends(replace(run, statistics=real, twins=(twin,)))
    begins = [text.partition(". It is above that of random weights, seed 3 at ") for text in found]
    also = "rises along the network, and with X as well: by itself no sign of training"
    none = "along the network; with X it has no trend"
    wanted = (
        f"Sparsity of contributions {also}",
        "The dimension of contributions rises along the network; with X it falls",
        "The participation ratio of contributions has no trend along the network, nor with X",
        f"The correlation of positive and negative part falls {none}",
    )
    assert tuple(begin.replace(words, "X") for begin, _, _ in begins) == wanted
    assert [end for _, _, end in begins] == [f"{n} of 4 sites." for n in (1, 2, 0, 3)]
    assert trends(run) == []  # two sites at most are no trend
    assert trends(replace(run, statistics=None)) == []


def test_controls_of_another_store_or_half_made_are_passed_over(tmp_path):
    folder = with_controls(tmp_path / "run", links=("stats",))
    next((folder / "controls" / "shuffled-labels").rglob("shard-*.json")).unlink()
    shutil.rmtree(folder / "contributions.zarr")
    store = collect(
        small_resnet(), small_inputs(), SITES, out=folder / "contributions.zarr", progress=False,
        method=IntegratedGradients(steps=4),
    )  # fmt: skip
    found = read_run(folder).twins
    assert [twin.control["name"] for twin in found] == ["RandomWeights"]
    shutil.rmtree(store.path)
    collect(
        small_resnet(), small_inputs(), SITES, out=folder / "contributions.zarr", progress=False,
        method=IntegratedGradients(steps=3),
    )  # fmt: skip
    assert read_run(folder).twins == ()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: attribution.IntegratedGradients(steps="auto"), "steps to a tolerance of 0.01"),
        (lambda: attribution.IntegratedGradients(rule="gauss", path="layer"), "Gauss-Legendre, al"),
        (lambda: attribution.IntegratedGradients(baseline=attribution.Noise()), "4 draws of noise"),
        (lambda: attribution.UnitAblation(replacement="mean"), "every unit, replaced by mean"),
        (attribution.GradCAM, "activation times the mean gradient of its unit"),
    ],
)
def test_methods_are_put_into_words(make, words: str) -> None:  # type: ignore[no-untyped-def]
    assert words in method_words(make().to_dict())


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (targets.Contrast(frozen=True), "the largest logit of the classes at the input less"),
        (targets.Margin(against="largest"), "own label less the largest of the others"),
        (targets.Entropy(), "the entropy of the output"),
        (targets.Sum(), "the sum of all outputs"),
        (targets.Sum((1, 2)), "the sum of outputs 1, 2"),
        (targets.Custom(torch.sum, "total"), "the function total"),
    ],
)
def test_targets_are_put_into_words(target, words: str) -> None:  # type: ignore[no-untyped-def]
    assert words in target_words(target.to_dict())


def test_every_method_target_and_baseline_has_words() -> None:
    for kind in attribution._METHODS.values():
        assert kind.__name__ not in method_words(kind().to_dict())


# --- what else edits do -------------------------------------------------------------------


def with_side_effects(folder: Path) -> Path:
    """Tables of what else edits do, at the first site."""
    store = Store.open(folder / "contributions.zarr")
    modes = Modes.load(folder / "modes" / "block1" / "sae", store)
    names = json.loads((folder / "analysis" / "labels.json").read_text())
    data = replace(small_inputs(), label_names=tuple(names))
    model = small_resnet().requires_grad_(requires_grad=False)
    of = {"model": model, "data": data, "modes": modes}
    made = {
        "control_matrix": pd.concat(
            [effects.control_matrix(**of, count=2, edit=edit).to_frame()
             for edit in ("ablate", "preserve")]
        ),
        "steering": effects.steering_curve(**of, strengths=(0.5, 1.0), n_random=2),
        "interactions": effects.mode_interactions(
            **of, count=2, pairs=[tuple(modes.ids[:2].tolist())], n_bootstrap=20
        ),
    }  # fmt: skip
    for name, table in made.items():
        file = folder / "analysis" / name / "block1" / "sae.parquet"
        file.parent.mkdir(parents=True)
        table.to_parquet(file, index=False)
    (folder / "analysis" / "superclasses.json").write_text(json.dumps([EVIL[0], EVIL[0], "y"]))
    return folder


@pytest.fixture(scope="module")
def changed_more(tmp_path_factory) -> Path:
    links = ("fit",)
    folder = tmp_path_factory.mktemp("effects") / "run"
    return with_side_effects(small_run(folder, links=links, label_names=EVIL))


def test_matrices_are_read_as_they_were_measured(changed_more):
    site = read_run(changed_more).sites[0]
    (fitted,) = site.fitted
    again = matrices(fitted.matrix, site.info.n_units)
    assert [one.edit for one in again] == ["ablate", "preserve"]
    tables = pd.concat([one.to_frame() for one in again])
    pd.testing.assert_frame_equal(
        tables.reset_index(drop=True), fitted.matrix.reset_index(drop=True), check_dtype=False
    )
    assert matrices(None, 4) == []


def test_what_else_changed_stands_on_the_page_of_its_site(changed_more):
    report = build_report(changed_more).parent
    page, other = Page(report / "sites" / "block1.html"), Page(
        report / "sites" / "block2%3Ainput.html"
    )  # fmt: skip
    assert "sae-effects" in page.ids
    assert "What else changed" not in other.text
    site = read_run(changed_more).sites[0]
    said = list(side_effect_sentences(site.fitted[0], 4, read_run(changed_more).hierarchy))
    for sentence in said:
        assert " ".join(sentence.split()) in " ".join(page.text.split()), sentence
    drawn = [name for name in page.resources if "/figures/block1-sae-" in name]
    wanted = {
        "matrix-ablate-zero-accuracy", "matrix-ablate-zero-logit", "interactions", "steering",
        "matrix-preserve-zero-accuracy", "matrix-preserve-zero-logit",
    }  # fmt: skip
    assert {Path(name).stem.removeprefix("block1-sae-") for name in drawn} >= wanted
    for one in pages(report):
        assert one.tags.count("script") == 1
        assert "x" not in one.resources
        assert not re.search(r"<img(?![^>]*\balt=\"[^\"]+\")", one.file.read_text())
    for file in report.rglob("*.svg"):
        assert "<script" not in file.read_text()


def test_words_on_matrix_steering_and_interactions(changed_more):
    site = read_run(changed_more).sites[0]
    (fitted,) = site.fitted
    nothing = replace(fitted, matrix=None, steering=None, interactions=None)
    assert list(side_effect_sentences(nothing, 4)) == []
    matrix = fitted.matrix[fitted.matrix["edit"] == "ablate"].copy()
    own = matrix["edited"] == matrix["label"]
    matrix["accuracy"] = own.map({True: 0.25, False: 0.75})
    pair = [{0, 1}, {0, 2}]
    loss = [-2.0 if {a, b} == pair[0] else 1.0 if {a, b} == pair[1] else -0.5
            for a, b in zip(matrix["edited"], matrix["label"], strict=True)]  # fmt: skip
    matrix["logit"] = loss
    first, shared = side_effect_sentences(replace(nothing, matrix=matrix), 4)
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
    (*_, agreement) = side_effect_sentences(replace(nothing, matrix=matrix), 4, groups)
    # Of three labels a third of the orders puts the same two together.
    assert agreement.startswith("No sign that labels of one superclass share more than labels of")
    assert "correlation of sharing with a common superclass 0.87 (p = 0.3" in agreement
    too_few = Hierarchy(("x", "x", ""))
    assert len(list(side_effect_sentences(replace(nothing, matrix=matrix), 4, too_few))) == 2


def test_words_on_steering_name_a_dictionary_that_adds_nothing(changed_more):
    (fitted,) = read_run(changed_more).sites[0].fitted
    nothing = replace(fitted, matrix=None, steering=None, interactions=None)
    for mode, end in (
        (0.5, "does as well."),
        (0.505, "does as well."),
        (0.75, "random directions."),
    ):
        curve = fitted.steering.copy()
        curve["converted"] = curve["direction"].map({"activation": mode}).fillna(0.5)
        (words,) = side_effect_sentences(replace(nothing, steering=curve), 4)
        assert words.startswith("Steered at strength 1, inputs of other labels become the label: ")
        assert words.endswith(end)


def test_words_on_interactions_are_of_the_output(changed_more):
    (fitted,) = read_run(changed_more).sites[0].fitted
    table = fitted.interactions.copy()
    table[["single_a", "single_b", "interaction", "low", "high"]] = [2.0, -4.0, -1.0, -2.0, -0.5]
    table.loc[table["quantity"] == "probability", "interaction"] = 9.0
    nothing = replace(fitted, matrix=None, steering=None, interactions=None)
    (words,) = side_effect_sentences(replace(nothing, interactions=table), 4)
    assert words == (
        "Ablating one pair of modes together differs from the sum of what each does alone by 1.00 "
        "of a label's output, at the median; a mode alone changes it by 3.00. 100 % of the 95 % "
        "intervals exclude 0."
    )
