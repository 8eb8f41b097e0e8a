"""The report in a real headless Chromium, opened from the file system."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

from browsing import inaccessible, watched
from condec.basis.npz import save_record
from condec.effects import (
    ByMode,
    ByModeSum,
    CurveOptions,
    RandomUnits,
    auc_difference,
    measure_curves,
)  # fmt: skip
from condec.explanation import explain, keep, site_maps
from condec.figures.style import RANKINGS
from condec.modes import Modes, annotate, annotations
from condec.report import build_comparison, build_report, figures
from condec.run.compare import compare_modes
from condec.store import RunFolder, Store
from condec.testing.models import small_resnet
from small_runs import record, small_inputs, small_run

pytestmark = pytest.mark.browser
EVIL = ("cat", "<script>document.title='owned'</script>", '"><img src=x onerror=alert(1)>')
NAME = f"a violin {EVIL[2]}"
PHONE = {"width": 360, "height": 740}
TOO_WIDE = "document.documentElement.scrollWidth - innerWidth"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = small_run(tmp_path_factory.mktemp("run") / "a run, 100 %", label_names=EVIL)
    place = RunFolder(folder)
    names = ("block2:input", "kmeans")
    found = Modes.load(place.modes(*names), Store.open(place.store))
    # A mode for each label, far enough apart that each has a card.
    drawn = torch.Generator().manual_seed(0)
    loadings, atoms = (torch.rand(x.shape, generator=drawn) for x in (found.loadings, found.atoms))
    loadings[:, :3] += found.store.labels[:, None] == torch.arange(3)
    modes = replace(found, loadings=loadings, atoms=atoms**8)
    modes.save(place.modes(*names))
    every = (ByMode(modes=modes), ByModeSum(modes=modes), RandomUnits(n_units=4, n_draws=2))
    options = CurveOptions(fractions=(0.25, 0.5, 0.75), rankings=every, n_bootstrap=100)
    curves = measure_curves(small_resnet(), small_inputs(), modes, options)
    place.write_table(curves.to_frame(), "control", *names)
    maps = site_maps(small_resnet(), small_inputs(), modes, n_modes=3, n_inputs=3)
    save_record(place.maps(*names), maps)
    # The input whose picture stands first, explained, under a hostile name.
    row = int(maps.samples[0, 0])
    model, inputs = small_resnet(), small_inputs()
    found_there = explain(model, inputs.batch([int(maps.ids[row])]), modes)
    one = keep(
        found_there, EVIL[1], {"name": "Predicted"}, why="typical", picture=maps.pictures[row]
    )
    save_record(place.explained(maps.ids[row]), one)
    made_from = {"input": maps.ids[row]}
    place.ledger.mark_done("it", "explain", made_from, (), [place.explained(maps.ids[row])])
    record(folder)
    return build_report(folder)


@pytest.fixture
def page(browser) -> Iterator[Any]:
    """A page that fails the test if anything fails in it, or comes from elsewhere."""
    yield from watched(browser)


def load_images(page) -> int:
    """Scroll to every picture; how many there are."""
    images = page.locator("img")
    for i in range(images.count()):
        image = images.nth(i)
        if image.is_visible():
            image.scroll_into_view_if_needed()
            page.wait_for_function("i => document.images[i].complete", arg=i)
            assert image.evaluate("i => i.naturalWidth") > 0, image.get_attribute("src")
    return images.count()


def test_first_page_opens(page, report):
    page.goto(report.as_uri())
    assert page.title() == "A small run"
    assert page.locator("h1").inner_text() == "A small run"
    assert load_images(page) >= 7
    assert page.locator(".facts b").first.inner_text() == "60"


def at(report: Path, file: str, anchor: str = "") -> str:
    return (report.parent / file).as_uri() + (f"#{anchor}" if anchor else "")


SITE = "sites/block2%3Ainput.html"
PLACE = "block2%253Ainput/kmeans"


def mode_of(page, report) -> int:
    """Open the page of the mode that stands first, by its picture; its number."""
    page.goto(at(report, SITE))
    first = page.locator(".modes .mode").first
    number = int(first.get_attribute("id").rpartition("-")[2])
    first.locator("a").click()
    page.locator("#mode h1", has_text=f"Mode {number}").wait_for()
    return number


def test_pages_lead_to_each_other(page, report):
    page.goto(report.as_uri())
    page.locator("table a", has_text="block2:input").first.click()
    assert page.locator("h1").inner_text() == "block2:input"
    assert page.locator(".pages [aria-current]").inner_text() == "block2:input"
    assert page.locator(".modes .tile image").count() == 3 * 6
    assert load_images(page) > 5
    page.locator("a[rel=prev]").click()
    assert page.locator("h1").inner_text() == "block1"
    page.locator(".pages a", has_text="block2:input").click()
    page.locator("nav .home").click()
    assert page.url == report.as_uri()
    page.locator(".network .mode a").first.click()
    page.locator("#mode h1", has_text="Mode").wait_for()


def test_a_picture_leads_to_why(page, report):
    page.goto(report.as_uri())
    small = page.locator(".explained img").first
    assert small.evaluate("i => getComputedStyle(i).imageRendering") == "pixelated"
    page.locator(".explained a").first.click()
    assert page.locator("h1").inner_text().startswith("Why ")
    assert EVIL[1] in page.locator(".eyebrow").inner_text()
    assert load_images(page) > 2
    assert page.locator(".portions li").count() > 2
    page.locator("summary").first.press("Enter")
    assert (
        page.locator("details[open] table").first.locator("th", has_text="left over").count() == 1
    )
    page.locator(".portions a").first.click()
    page.locator("#mode h1", has_text="Mode").wait_for()
    page.goto(at(report, SITE))
    links = [one.get_attribute("href") for one in page.locator(".modes .mode > a").all()]
    for link in links:  # one of them has the input that is explained
        page.goto(at(report, *link.removeprefix("../").split("#")))
        page.locator("#mode h1", has_text="Mode").wait_for()
        if page.locator(".row a[title='why this output']").count():
            break
    page.locator(".row a[title='why this output']").first.click()
    assert page.locator("h1").inner_text().startswith("Why ")


def test_a_mode_has_all_that_is_known_of_it(page, report):
    number = mode_of(page, report)
    for said in ("Used by", "Atom", "Typical", "Drawn at random", "At this site", "Neighbours"):
        assert said in page.locator("#mode").inner_text(), said
    assert page.locator(".bars tbody tr").count() >= 1
    assert " to " in page.locator(".bars .reaches").first.inner_text()  # its interval
    assert page.locator(".atom path").count() == 4
    assert page.locator(".row.map .tile image").count() == 3 * 4
    for kind in ("Typical", "Drawn at random", "Counter-examples"):
        part = page.locator(".kind", has=page.locator("h3", has_text=kind))
        if part.count():  # a picture, and the map of it
            assert part.locator(".tile").count() == 2 * part.locator("figure").count() > 0
            assert "contributes where, on the scale" in part.locator(".note").inner_text()
    second = page.locator("a[rel=next]").get_attribute("href").rpartition("/")[2]
    page.keyboard.press("ArrowRight")
    page.locator("#mode h1", has_text=f"Mode {second}").wait_for()
    assert page.evaluate("document.activeElement.tagName") == "H1"
    page.go_back()
    page.locator("#mode h1", has_text=f"Mode {number}").wait_for()
    page.locator("#neighbours ~ .kind a").first.click()
    page.locator("#mode h1", has_not_text=f"Mode {number} ").wait_for()
    page.goto(at(report, "mode.html", f"{PLACE}/9999"))
    page.locator("h1", has_text="block2:input has no mode 9999 in use").wait_for()
    page.goto(at(report, "mode.html", "nowhere/%3Cscript%3E/1"))
    page.locator("h1", has_text="No such mode").wait_for()


def test_the_control_curve_of_a_mode_stands_beside_baselines(page, report):
    text = (report.parent / "data" / "block2%3Ainput" / "kmeans" / "modes.js").read_text()
    curves, columns = (json.loads(text.splitlines()[1])[name] for name in ("curves", "columns"))
    assert curves == [0, 1, 2]
    records = (report.parent / "data" / "block2%3Ainput" / "kmeans" / "0.js").read_text()
    of_labels = [record[9] for record in json.loads(records.splitlines()[1])]
    assert sorted(label for labels in of_labels for label in labels) == curves
    number = next(n for n, labels in zip(columns["id"], of_labels, strict=True) if labels)
    page.goto(at(report, "mode.html", f"{PLACE}/{number}"))
    block = page.locator("#control ~ div").first
    block.wait_for()
    assert block.locator("polyline.own").count() == 2
    names = block.locator("tbody th").all_inner_texts()
    assert names[0].strip() == "this mode"
    assert len(names) > 2
    drawn = block.locator(".curves figure").first.locator("polyline")
    drawn = drawn.evaluate_all("all => all.map((one) => one.getAttribute('stroke'))")
    expected = {RANKINGS["best_mode"][1], RANKINGS["modes"][1], RANKINGS["random"][1]}
    assert {*drawn} == expected  # as in the figures of the site
    table = pandas.read_parquet(next((report.parents[1] / "analysis" / "control").rglob("km*")))
    label = int(block.locator("h3 a").get_attribute("href").rpartition("#")[2])
    rows = table[(table["label"] == label) & (table["edit"] == "ablate")]
    mine = auc_difference(rows[rows["ranking"] == "best_mode"])["auc_difference"].iloc[0]
    said = block.locator("tbody td").first.inner_text().replace("\u2212", "-")
    assert said == "\u2013" if mine != mine else float(said) == pytest.approx(mine, abs=6e-3)


def test_labels_have_pages(page, report):
    page.goto(report.as_uri())
    page.locator(".pages a", has_text="Labels").click()
    rows = page.locator("#label tbody tr")
    rows.first.wait_for()
    assert rows.count() == 3
    page.locator("#label tbody th a", has_text="cat").click()
    page.locator("#label h1", has_text="cat").wait_for()
    for said in ("Its modes over depth", "Control", "Kinds of its inputs", "20 inputs"):
        assert said in page.locator("#label").inner_text(), said
    assert page.locator(".depth").count() == 2
    page.locator("a[rel=next]").click()
    page.locator("#label h1", has_text=EVIL[1]).wait_for()
    page.go_back()
    page.locator("#label h1", has_text="cat").wait_for()
    page.locator(".depth .mode a").first.click()
    page.locator("#mode h1", has_text="Mode").wait_for()


def test_names_survive_a_new_page_export_and_import(browser, report, tmp_path):
    for page in watched(browser, accept_downloads=True):
        number = mode_of(page, report)
        page.locator(".naming summary").click()
        for name, text in (("name", NAME), ("group", "tools"), ("note", "seen\ntwice")):
            page.locator(f".say [name={name}]").fill(text)
            page.locator(f".say [name={name}]").blur()
        page.locator(".say [role=status]", has_text="Kept in this browser").wait_for()
        page.goto(at(report, SITE))
        assert page.locator("[data-modes] td", has_text=NAME).count() == 1
        page.locator("[data-modes] select").first.select_option(label="tools")
        assert page.locator("[data-modes] tbody tr").count() == 1
        page.goto(report.as_uri())
        page.locator("#names a", has_text=NAME).wait_for()
        with page.expect_download() as download:
            page.locator("#names button", has_text="Export").click()
        kept = tmp_path / "names.json"
        download.value.save_as(kept)
    run = report.parents[1]
    modes = Modes.load(
        run / "modes" / "block2%3Ainput" / "kmeans", Store.open(RunFolder(run).store)
    )
    shutil.copy(kept, tmp_path / "run-names.json")
    (tmp_path / "run").mkdir()
    shutil.copy(kept, tmp_path / "run" / "names.json")
    (found,) = annotations(tmp_path / "run", modes).items()  # as Python reads it
    assert (int(modes.ids[found[0]]), found[1].name) == (number, NAME)
    assert (found[1].group, found[1].note) == ("tools", "seen\ntwice")
    assert found[1].cosine > 0.999
    for page in watched(browser):  # another browser
        page.goto(report.as_uri())
        page.locator("#names li", has_text="Nobody has named a mode yet").wait_for()
        page.locator("#names-file").set_input_files(kept)
        page.locator("#names a", has_text=NAME).click()
        assert page.locator(".say [name=note]").input_value() == "seen\ntwice"
        page.goto(report.as_uri())
        page.locator("#names button", has_text="Forget").click()
        page.locator("#names li", has_text="Nobody has named a mode yet").wait_for()
        kept.write_text('{"block1": [{"name": "x"}]}')
        page.locator("#names-file").set_input_files(kept)
        page.locator("#names [role=status]", has_text="Not taken over: block1: expected").wait_for()


def test_names_that_the_run_has_are_on_the_pages(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: path.touch())
    folder = small_run(tmp_path / "run", links=("fit",))
    modes = Modes.load(folder / "modes" / "block1" / "sae", Store.open(RunFolder(folder).store))
    annotate(folder, modes, 1, name="a violin", group="music")
    report = build_report(folder)
    for page in watched(browser):
        page.goto(report.as_uri())
        page.locator("#names a", has_text="a violin").click()
        page.locator("#mode h1", has_text=f"Mode {int(modes.ids[1])} a violin").wait_for()
        page.goto(at(report, "mode.html", f"block1/sae/{int(modes.ids[0])}"))
        page.locator(".naming summary").click()
        page.locator(".say [name=name]").fill("mine")
        page.locator(".say [name=name]").blur()
        page.locator(".say [role=status]", has_text="Kept in this browser").wait_for()
        annotate(folder, modes, 1, name="a viola")
        build_report(folder)  # what was written in the browser hides nothing of it
        page.goto(report.as_uri())
        page.locator("#names a", has_text="a viola").wait_for()
        assert page.locator("#names a").all_inner_texts() == ["a viola", "mine"]


def changed(file: Path, change: Callable[[Any], object]) -> None:
    """Change a file of data of a report."""
    head, text, *rest = file.read_text().splitlines()
    value = json.loads(text)
    change(value)
    file.write_text("\n".join([head, json.dumps(value), *rest, ""]))


def test_a_mode_says_what_its_numbers_are_of(browser, report, tmp_path):
    own = shutil.copytree(report.parent, tmp_path / "report")
    data = own / "data" / "block2%3Ainput" / "kmeans"
    modes = json.loads((data / "modes.js").read_text().splitlines()[1])
    drawn = []

    def as_of_a_large_picture(records: list[Any]) -> None:
        for number, one in zip(modes["columns"]["id"], records, strict=True):
            one[10] = [2, ["block2%3Ainput/kmeans", number, 0.5]]
            if one[11]:
                drawn.append(number)
                one[11] |= {"places": False, "signs": False, "target": "the logit of an owl"}
                one[11]["loadings"][-1] = 9.87

    changed(data / "0.js", as_of_a_large_picture)
    changed(data / "modes.js", lambda table: table.update(n_units=table["units"] // 2))
    changed(own / "data" / "labels" / "0.js", lambda of: of["0"].update(kinds="they are odd"))
    for page in watched(browser):
        page.goto(at(own / "index.html", "mode.html", f"{PLACE}/{drawn[0]}"))
        page.locator("#mode h1", has_text=f"Mode {drawn[0]}").wait_for()
        units = page.locator(".units b").all_inner_texts()
        half = modes["units"] // 2
        wanted = {f"{n} ({sign} part)" for n in range(half) for sign in ("positive", "negative")}
        assert set(units) == wanted
        stems = page.locator(".atom title").all_text_contents()
        assert {text.removeprefix("unit ").split(":")[0] for text in stems} == wanted
        legend = page.locator(".legend").inner_text()
        assert "through which its strongest units move the logit of an owl" in legend
        assert "adds" not in legend
        assert "9.87" in page.locator(".tiles .head").inner_text()
        flow = page.locator(".kind", has=page.locator("h3", has_text="By flow")).inner_text()
        assert "over the 2 explained inputs among whose strongest modes it is" in flow
        page.goto(at(own / "index.html", "label.html", "0"))
        page.locator("#label .note", has_text="None: they are odd.").wait_for()


def test_a_mode_that_comes_late_is_not_drawn(page, report):
    number = mode_of(page, report)
    here, text = page.url, (report.parent / "data" / "block1" / "sae" / "modes.js").read_text()
    other = json.loads(text.splitlines()[1])["columns"]["id"][0]
    page.evaluate("""() => {
        const own = load, gate = new Promise((go) => { window.go = go; });
        load = (name) => name.startsWith("block1/") ? gate.then(() => own(name)) : own(name);
    }""")
    page.evaluate("(hash) => { location.hash = hash; }", f"block1/sae/{other}")
    page.wait_for_timeout(50)
    page.evaluate("(hash) => { location.hash = hash; }", here.partition("#")[2])
    page.evaluate("window.go()")
    page.wait_for_timeout(300)
    assert page.locator("#mode h1").inner_text().startswith(f"Mode {number}")
    assert "block2:input" in page.locator("#mode .eyebrow").inner_text()
    page.evaluate("(hash) => { location.hash = hash; }", f"block1/sae/{other}")
    page.locator("#mode .eyebrow", has_text="block1").wait_for()


def test_names_stay_text(page, report):
    page.goto((report.parent / "sites" / "block1.html").as_uri())
    assert page.title() == "block1 - A small run"
    assert (
        EVIL[1] in page.locator("main").inner_text() or EVIL[2] in page.locator("main").inner_text()
    )
    assert page.locator("img[src=x]").count() == 0


def test_tables_sort_by_number_and_back(page, report):
    page.goto(at(report, SITE))
    table = page.locator("[data-modes] table")
    head = table.locator("th", has_text="Use").last
    for wanted, reverse in (("descending", True), ("ascending", False)):
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == wanted
        place = head.evaluate("h => h.cellIndex") + 1
        use = table.locator(f"tbody tr :nth-child({place})").all_inner_texts()
        values = [float(text.rstrip(" %")) for text in use]
        assert len(values) == 4
        assert values == sorted(values, reverse=reverse)


def test_one_kind_of_map(page, report):
    mode_of(page, report)
    page.locator(".choice button", has_text="negative").click()
    assert page.locator(".row.map:visible").count() == 1
    assert page.locator(".row.map:visible").get_attribute("data-part") == "negative"
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    page.locator(".row.map:visible").first.wait_for()
    assert page.locator(".row.map:visible").get_attribute("data-part") == "negative"


def test_a_link_leads_to_the_same_view(page, report):
    page.goto(at(report, SITE))
    table = page.locator("[data-modes] table")
    for _ in range(2):
        table.locator("thead button").nth(2).click()
    page.locator("[data-modes] input[type=search]").fill("a")
    page.locator(".scatter").first.wait_for()
    page.get_by_label("across").select_option(label="Mode")
    link, rows = page.url, table.locator("tbody tr").all_text_contents()
    assert "~" in link
    page.goto("about:blank")
    page.goto(link)
    table.wait_for()
    assert table.locator("thead th").nth(2).get_attribute("aria-sort")
    assert table.locator("tbody tr").all_text_contents() == rows
    assert page.locator("[data-modes] input[type=search]").input_value() == "a"
    assert "over Mode" in page.locator(".scatter svg").get_attribute("aria-label")
    page.goto(link.partition("~")[0] + "~s0=99&x0=99&g0=%3Cscript%3E&t0=99&%E0%A4%A")  # broken
    table.wait_for()
    assert table.locator("[aria-sort]").count() == 0


def test_pictures_are_shown_large(page, report):
    page.goto(report.as_uri())
    picture = page.locator(".chart img").first
    picture.press("Enter")
    large = page.locator("dialog.large")
    assert large.is_visible()
    assert large.locator("p").inner_text() == picture.get_attribute("alt")
    page.keyboard.press("Escape")
    assert not large.is_visible()
    picture.click()
    large.click()
    assert not large.is_visible()


def test_rows_are_searched(page, report):
    page.goto(at(report, SITE))
    field = page.locator("[data-modes] input[type=search]")
    rows = page.locator("[data-modes] tbody tr")
    rows.first.wait_for()
    field.fill("nothing like it")
    assert rows.count() == 0
    assert "q0=nothing" in page.url
    field.fill("")
    assert rows.count() == 4
    assert "q0" not in page.url


def test_maps_are_shown_large(page, report):
    mode_of(page, report)
    picture = page.locator(".row.map:visible .tile").first
    picture.press("Enter")
    large = page.locator("dialog.large")
    assert large.locator("p").inner_text() == picture.get_attribute("aria-label")
    page.keyboard.press("Escape")
    assert not large.is_visible()


def test_two_runs_are_compared(browser, report, tmp_path):
    first = report.parents[1]
    other = small_run(tmp_path / "other", links=("fit", "map"))
    table = compare_modes(first, other)
    address = build_comparison(first, other, table, ["as it is"], tmp_path / "both").as_uri()
    for page in watched(browser):
        page.goto(address)
        rows = page.locator("#compare tbody tr")
        rows.first.wait_for()
        assert rows.count() == len(table)
        assert page.locator("#compare .side .tile").count() > 0
        assert inaccessible(page) == []
        for size in (PHONE, {"width": 1280, "height": 900}):
            page.set_viewport_size(size)
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        page.locator("#compare td a").first.click()
        page.locator("#mode h1", has_text="Mode").wait_for()


FILES = ("index.html", "sites/block1.html", SITE, "label.html", "inputs/*.html")
VIEWS = [(file, "") for file in FILES] + [("label.html", "0"), ("mode.html", PLACE)]


def views(report: Path) -> Iterator[str]:
    """Every type of page, by its address."""
    for file, anchor in VIEWS:
        found = sorted(report.parent.glob(file))
        if anchor == PLACE:
            text = (report.parent / SITE).read_text()
            anchor += "/" + text.partition('id="kmeans-mode-')[2].partition('"')[0]
        yield found[0].as_uri() + (f"#{anchor}" if anchor else "")


def test_no_page_has_a_serious_finding(browser, report):
    """In the light; in the dark, where other colours are all that is other."""
    for page in watched(browser, color_scheme="light"):
        for address in views(report):
            page.goto("about:blank")
            page.goto(address)
            page.wait_for_timeout(200)
            page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
            assert inaccessible(page) == [], address
            page.emulate_media(color_scheme="dark")
            assert inaccessible(page, "color-contrast") == [], address
            page.emulate_media(color_scheme="light")


def test_no_page_jumps_or_is_late(browser, report):
    watch = """() => { window.moved = 0; new PerformanceObserver((list) => {
        for (const one of list.getEntries()) if (!one.hadRecentInput) window.moved += one.value;
    }).observe({ type: "layout-shift", buffered: true }); }"""
    for page in watched(browser, viewport={"width": 1280, "height": 900}):
        page.add_init_script(f"({watch})()")
        for address in views(report):
            page.goto("about:blank")
            page.goto(address)
            page.wait_for_timeout(300)
            assert page.evaluate("window.moved") < 0.1, address  # "good", by web.dev
            assert page.evaluate(TOO_WIDE) <= 0, address


def test_paper_has_no_controls(page, report):
    page.goto(at(report, SITE))
    page.locator("[data-modes] table").wait_for()
    page.emulate_media(media="print")
    assert page.locator("nav:visible, .tools:visible, .plain:visible").count() == 0
    assert page.locator(".modes .tile:visible").count() > 0


def test_no_page_is_wider_than_a_phone(browser, report):
    for page in watched(browser, viewport=PHONE):
        for address in views(report):
            page.goto("about:blank")
            page.goto(address)
            page.wait_for_timeout(200)
            wide = page.evaluate(TOO_WIDE)
            assert wide <= 0, f"{address} is {wide} pixels too wide"


def test_without_scripts_sites_can_be_read(browser, report):
    for page in watched(browser, java_script_enabled=False):
        page.goto(at(report, SITE))
        assert page.locator(".modes .mode:visible").count() == 3
        assert page.locator("button, select").count() == 0
        assert "need scripts" in page.locator("[data-modes]").inner_text()
        page.goto(at(report, "mode.html", f"{PLACE}/0"))
        assert "drawn by scripts" in page.locator("#mode").inner_text()
