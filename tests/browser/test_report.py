"""The report in a real headless Chromium, opened from the file system."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from browsing import watched
from condec.basis.npz import save_record
from condec.explanation import explain, keep, site_maps
from condec.modes import Modes
from condec.report import build_report
from condec.store import RunFolder, Store
from condec.testing.models import small_resnet
from small_runs import record, small_inputs, small_run

pytestmark = pytest.mark.browser
EVIL = ("cat", "<script>document.title='owned'</script>", '"><img src=x onerror=alert(1)>')
PHONE = {"width": 360, "height": 740}


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


def test_pages_lead_to_each_other(page, report):
    page.goto(report.as_uri())
    page.locator("table a", has_text="block2:input").first.click()
    assert page.locator("h1").inner_text() == "block2:input"
    assert page.locator(".pages [aria-current]").inner_text() == "block2:input"
    assert load_images(page) > 20
    page.locator("a[rel=prev]").click()
    assert page.locator("h1").inner_text() == "block1"
    page.locator(".pages a", has_text="block2:input").click()
    page.locator("nav .home").click()
    assert page.url == report.as_uri()


def test_a_picture_leads_to_why(page, report):
    page.goto((report.parent / "sites" / "block2%3Ainput.html").as_uri())
    page.locator(".tiles figure a").first.click()
    assert page.locator("h1").inner_text().startswith("Why ")
    assert EVIL[1] in page.locator(".eyebrow").inner_text()
    assert load_images(page) > 2
    assert page.locator(".portions li").count() > 2
    page.locator("summary").first.press("Enter")
    assert (
        page.locator("details[open] table").first.locator("th", has_text="left over").count() == 1
    )
    page.locator(".portions a").first.click()
    assert page.locator("h1").inner_text() == "block2:input"
    page.locator("nav .home").click()
    small = page.locator(".explained img").first
    assert small.evaluate("i => getComputedStyle(i).imageRendering") == "pixelated"
    page.locator(".explained a").first.click()
    assert page.locator("h1").inner_text().startswith("Why ")


def test_names_stay_text(page, report):
    page.goto((report.parent / "sites" / "block1.html").as_uri())
    assert page.title() == "block1 - A small run"
    assert (
        EVIL[1] in page.locator("main").inner_text() or EVIL[2] in page.locator("main").inner_text()
    )
    assert page.locator("img[src=x]").count() == 0


def test_tables_sort_by_number_and_back(page, report):
    page.goto((report.parent / "sites" / "block2%3Ainput.html").as_uri())
    # By keys: a picture that comes late moves what is clicked from under the mouse.
    page.locator("summary", has_text="All modes").press("Enter")
    table = page.locator("details.all table")
    head = table.locator("th", has_text="Use").first
    for wanted, reverse in (("ascending", False), ("descending", True)):
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == wanted
        use = table.locator("tbody tr td:nth-child(5)").all_inner_texts()
        values = [float(text.rstrip(" %")) for text in use]
        assert len(values) == 4
        assert values == sorted(values, reverse=reverse)


def test_modes_of_one_label_and_one_kind_of_map(page, report):
    page.goto((report.parent / "sites" / "block2%3Ainput.html").as_uri())
    cards = page.locator(".card")
    labels = [cards.nth(i).get_attribute("data-label") for i in range(cards.count())]
    page.locator("select").select_option(labels[0])
    assert page.locator(".card:visible").count() == labels.count(labels[0]) < len(labels)
    page.locator("select").select_option("")
    page.locator(".choice button", has_text="negative").click()
    assert page.locator(".row.map:visible").count() == len(labels)
    assert page.locator(".row.map:visible").first.get_attribute("data-part") == "negative"


def test_a_link_leads_to_the_same_view(page, report):
    page.goto((report.parent / "sites" / "block2%3Ainput.html").as_uri())
    label = page.locator(".card").first.get_attribute("data-label")
    page.locator("select").select_option(label)
    page.locator(".choice button", has_text="negative").click()
    table = page.locator("table.sortable").first
    number = table.locator("thead th button").nth(1)
    number.evaluate("b => b.click()")
    number.evaluate("b => b.click()")
    link, rows = page.url, table.locator("tbody tr").all_text_contents()
    assert "~" in link
    page.goto("about:blank")
    page.goto(link)
    assert page.locator("select").input_value() == label
    shown = page.locator(".row.map:visible")
    assert {shown.nth(n).get_attribute("data-part") for n in range(shown.count())} == {"negative"}
    assert table.locator("thead th").nth(1).get_attribute("aria-sort") == "descending"
    assert table.locator("tbody tr").all_text_contents() == rows
    page.goto(link.partition("~")[0] + "~t0=99&l0=%3Cscript%3E&m0=no&%E0%A4%A")  # a broken one
    page.wait_for_load_state()
    assert page.locator("select").input_value() == ""


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
    page.goto((report.parent / "sites" / "block2%3Ainput.html").as_uri())
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    page.evaluate(
        """() => {  // a table of the page, made longer than those of the small run
            const body = document.querySelector("table.sortable").tBodies[0];
            while (body.rows.length < 14) body.append(body.rows[0].cloneNode(true));
            body.rows[13].cells[0].textContent = "needle";
        }"""
    )
    page.evaluate("document.querySelector('table.sortable').parentNode.before(search("
                  "document.querySelector('table.sortable'), 'q0'))")  # fmt: skip
    field = page.locator("input[type=search]").first
    field.fill("NEEDLE")
    rows = page.locator("table.sortable").first.locator("tbody tr")
    assert [row.is_visible() for row in rows.all()].count(True) <= 1
    assert "q0=NEEDLE" in page.url
    field.fill("")
    assert "q0" not in page.url


@pytest.mark.parametrize("size", [PHONE, {"width": 1400, "height": 900}])
def test_no_page_is_wider_than_its_window(browser, report, size):
    for page in watched(browser, viewport=size):
        for file in sorted(report.parent.rglob("*.html")):
            page.goto(file.as_uri())
            wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{file.name} is {wide} pixels too wide"


def test_without_scripts_nothing_is_missing(browser, report):
    for page in watched(browser, java_script_enabled=False):
        page.goto((report.parent / "sites" / "block2%3Ainput.html").as_uri())
        assert page.locator(".card").count() == 3
        assert page.locator(".card:visible").count() == 3
        assert page.locator(".row.map:visible").count() == 12
        assert page.locator("button, select").count() == 0
