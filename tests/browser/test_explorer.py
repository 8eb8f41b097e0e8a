"""The served explorer in a real headless Chromium."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import condec
from browsing import inaccessible, watched
from condec.explorer.notebook import answered
from condec.explorer.session import Session
from condec.run.explain import modes_by
from condec.run.selection import read_selection
from explored import explored_run, served, values

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return explored_run(tmp_path_factory.mktemp("explored"))


@pytest.fixture(scope="module")
def address(session: Session) -> Iterator[str]:
    yield from served(session)


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    yield from watched(browser, own=address)


def test_sliders_give_what_python_gives(page: Any, address: str, session: Session) -> None:
    page.goto(address)
    button = page.locator("#offered button", has_text="photo").first
    name = button.inner_text().strip()
    button.click()
    first = page.locator("#parts li").first
    first.wait_for()
    row = session.run.inputs.ids.index(name)
    x, model = session.run.inputs.batch([row]), session.run.loaded.model
    assert values(page, 1) == pytest.approx(sorted(model(x)[0].tolist())[::-1], rel=6e-3)
    part = first.get_attribute("data-part")
    with page.expect_response("**/api/turn"):
        first.locator("input[type=range]").fill("0")
    found = condec.explain(model, x, modes_by(session.run), n_modes=10)
    site = found.by_site[0].site
    now = found.turned(site, {part: 0.0})[0]
    order = model(x)[0].argsort(descending=True)
    expected = [float(f"{value:.3g}") for value in now[order].tolist()]
    page.wait_for_function(
        "e => Number(document.querySelector('#outputs tbody td:nth-of-type(2)').textContent"
        ".replace('\u2212', '-')) === e", arg=expected[0],
    )  # fmt: skip
    assert values(page, 2) == pytest.approx(expected, rel=1e-6)
    page.locator("summary", has_text="The same in Python").click()
    assert f'found.turned("{site.key}", {{"{part}": 0}})' in page.locator("#code").inner_text()
    page.locator("#reset").click()
    assert values(page, 2) == values(page, 1)


def test_every_site_and_the_page_of_an_input(page: Any, address: str) -> None:
    page.goto(address)
    page.locator("#offered button").nth(4).press("Enter")
    page.locator("#parts li").first.wait_for()
    for button in page.locator("#sites button").all():
        name = button.inner_text()
        button.press("Enter")
        assert page.locator("#sites [aria-pressed=true]").all_inner_texts() == [name]
        assert f'found.turned("{name}"' in page.locator("#code").text_content()
        assert page.locator("#parts li").count() > 1
    with page.expect_download() as download:
        page.locator("#save").click()
    assert download.value.suggested_filename == "explained.zip"


def test_hostile_names_stay_text(page: Any, address: str) -> None:
    page.goto(address)
    button = page.locator("#offered button", has_text="<script>").first
    button.click()
    page.locator("#parts li").first.wait_for()
    assert "<script>alert(1)</script>" in page.locator("#said").inner_text()
    assert page.locator("main script, main img[src=x]").count() == 0


def test_uploads_good_and_bad(page: Any, address: str) -> None:
    page.goto(address)
    good = io.BytesIO()
    Image.fromarray(np.full((6, 6), 200, np.uint8)).save(good, "PNG")
    file = {"name": "own.png", "mimeType": "image/png", "buffer": good.getvalue()}
    page.locator("#file").set_input_files([file])
    page.locator("#parts li").first.wait_for()
    assert page.locator("#said.wrong").count() == 0
    with page.expect_response("**/api/upload") as answer:
        page.locator("#file").set_input_files([{**file, "buffer": b"no picture"}])
    assert answer.value.status == 400
    page.locator("#said.wrong", has_text="expected a picture (PNG, JPEG or WebP)").wait_for()


@pytest.mark.parametrize("size", [{"width": 1280, "height": 900}, {"width": 390, "height": 800}])
def test_nothing_is_cut_off(browser: Any, address: str, size: dict[str, int]) -> None:
    for page in watched(browser, own=address, viewport=size):
        page.goto(address)
        page.locator("#offered button").first.click()
        page.locator("#parts li").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        for slider in page.locator("#parts input[type=range]").all():
            assert slider.get_attribute("aria-label").startswith("factor of ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_hidden_from_any_reader(browser: Any, address: str, scheme: str) -> None:
    opened = "for (const one of document.querySelectorAll('details')) one.open = true"
    for page in watched(browser, own=address, color_scheme=scheme):
        page.goto(address)
        page.locator("#offered button").nth(5).wait_for()
        page.evaluate(opened)
        assert inaccessible(page) == []
        page.locator("#offered button").nth(5).click()
        page.locator("#parts li").first.wait_for()
        page.locator("#parts input[type=range]").first.fill("0")
        page.locator("#outputs td.moved").first.wait_for()
        page.locator("#parts input[type=checkbox]").first.check()
        page.locator("#chosen li").wait_for()
        assert inaccessible(page) == []
        page.locator("#save-weights").click()
        page.locator("#said.wrong").wait_for()
        assert inaccessible(page) == []


def test_modes_are_chosen_and_saved(page: Any, address: str, session: Session) -> None:
    page.goto(address)
    page.locator("#offered button").nth(5).click()
    page.locator("#parts li").first.wait_for()
    assert page.locator("#save-chosen").is_disabled()
    boxes = page.locator("#parts input[type=checkbox]")
    boxes.first.check()
    page.locator("#sites button").nth(1).click()  # another site has choices of its own
    assert page.locator("#parts input:checked").count() == 0
    boxes.first.check()
    assert page.locator("#chosen li").count() == 2
    page.locator("#chosen button").first.click()
    assert page.locator("#chosen li").count() == 1
    with page.expect_download() as download:
        page.locator("#save-chosen").click()
    assert download.value.suggested_filename == "selection.toml"
    (chosen,) = read_selection(download.value.path())
    site, mode = page.locator("#chosen button").inner_text().split(" mode ")
    assert (chosen.site, chosen.mode) == (site, int(mode.split()[0]))
    assert chosen.label is not None


def test_weights_are_saved_or_refused_with_a_reason(page: Any, address: str) -> None:
    page.goto(address)
    page.locator("#offered button").nth(5).click()
    page.locator("#parts li").first.wait_for()
    page.locator("#save-weights").click()
    page.locator("#said.wrong", has_text="no slider of this site is turned").wait_for()
    page.locator("#parts input[type=range]").first.fill("0")
    page.locator("#save-weights").click()
    page.locator("#said.wrong", has_text="cannot be held by weights").wait_for()


@pytest.mark.slow
def test_a_control_curve_of_a_chosen_mode_is_drawn(browser: Any, tmp_path: Path) -> None:
    for own in served(explored_run(tmp_path)):
        for page in watched(browser, own=own):
            page.goto(own)
            page.locator("#offered button").nth(5).click()
            page.locator("#parts li").first.wait_for()
            page.locator("#parts input[type=checkbox]").first.check()
            page.locator("#control-chosen").click()
            page.locator("#jobs li[data-state=running]").wait_for()
            page.locator("#jobs li[data-state=done]").wait_for(timeout=90_000)
            page.locator("#curves path.own.target").first.wait_for(state="attached")
            assert page.locator("#curves path.rival").count() > 0
            page.reload()
            page.locator("#jobs li[data-state=done]").wait_for()
            page.locator("summary", has_text="Longer work").click()
            page.locator("#n-modes").fill("many")
            page.locator("#fit button").click()
            page.locator("#job-said", has_text="n_modes: expected a number").wait_for()
            page.locator("#n-modes").fill("5")
            page.locator("#fit button").click()
            page.locator("#jobs li button").click()
            page.locator("#jobs li[data-state=cancelled]").wait_for()


def test_curves_of_each_label_are_a_panel_with_a_key(page: Any, address: str) -> None:
    def curve(label: str, ranking: str, end: float) -> dict[str, Any]:
        values = {"fraction": [0.0, 1.0], "target_accuracy": [1.0, end], "off_accuracy": [1.0, end]}
        named = {"label": label, "ranking": ranking, "named": f"by {ranking}"}
        return named | {"edit": "ablate", "replacement": "0"} | values

    of_one = [("mode", 0.1), ("contribution_difference", 0.4), ("random", 0.8)]
    found = [curve(label, *one) for label in ("two", "five") for one in of_one]
    page.route("**/api/curves", lambda route: route.fulfill(json=found))
    page.goto(address)
    page.locator("#offered button").nth(5).click()
    page.locator("#parts input[type=checkbox]").first.check()
    page.locator("#curves figure").nth(1).wait_for()
    for figure, label in zip(page.locator("#curves figure").all(), ("two", "five"), strict=True):
        key = ["this mode", "by contribution_difference", "by random"]
        said = f"Accuracy on {label} (solid) and on all other labels (dashed)"
        assert said in figure.locator("figcaption").inner_text()
        assert figure.locator("figcaption li").all_inner_texts() == key
        lines = "e => [...e.querySelectorAll('path')].map(p => getComputedStyle(p).stroke)"
        drawn = figure.locator("svg[role=img]").evaluate(lines)
        shown = figure.locator("figcaption ul").evaluate(lines)
        assert drawn[::2] == drawn[1::2] == shown
        assert len(set(drawn)) == 3
    assert inaccessible(page) == []


def test_a_fit_takes_the_choice_back(page: Any, address: str) -> None:
    job = {"job": 1, "link": "fit", "words": "Modes", "seconds": 1.0, "said": [], "bars": []}
    state = {"state": "running"}
    page.route("**/api/jobs", lambda route: route.fulfill(json=[job | state]))
    page.goto(address)
    page.locator("#offered button").nth(5).click()
    page.locator("#parts input[type=checkbox]").first.check()
    state["state"] = "done"
    page.locator("#said", has_text="Modes were fitted again; explain the input again").wait_for()
    assert page.locator("#chosen li").count() == 0
    assert page.locator("#parts input:checked").count() == 0
    assert page.locator("#control-chosen").is_disabled()


def test_views_of_a_notebook_take_their_own_answers(browser: Any, session: Session) -> None:
    pytest.importorskip("anywidget", reason="anywidget is not installed")
    widget = condec.show(session.run)
    for page in watched(browser, own="blob:"):
        page.set_content("<div id='el'></div>")
        sent = page.evaluate(TWO_VIEWS, [widget._esm, {"html": widget.html, "css": widget.css}])
        assert len(sent) == len(set(sent)) > 2


def test_the_same_page_in_a_notebook(browser: Any, session: Session) -> None:
    pytest.importorskip("anywidget", reason="anywidget is not installed")
    widget = condec.show(session.run)
    for page in watched(browser, own="blob:"):
        page.set_content("<h1>Notebook</h1><div id='el'></div>")

        def kernel(content: dict[str, Any], buffers: list[str]) -> Any:
            told, files = answered(session, content, [*map(base64.b64decode, buffers)])
            return told, [base64.b64encode(file).decode() for file in files]

        page.expose_function("kernel", kernel)
        page.evaluate(BRIDGE, [widget._esm, {"html": widget.html, "css": widget.css}])
        page.wait_for_function("document.querySelector('#el').shadowRoot.querySelector('img')")
        page.locator("#offered button", has_text="photo").first.click()
        first = page.locator("#parts li").first
        first.wait_for()
        first.locator("input[type=range]").fill("0")
        page.locator("#outputs td.moved").first.wait_for()
        assert page.locator("#sums").inner_text().count("Now it is") == 1
        file = {"name": "no.png", "mimeType": "image/png", "buffer": b"no picture"}
        page.locator("#file").set_input_files([file])
        page.locator("#said.wrong", has_text="expected a picture (PNG, JPEG or WebP)").wait_for()
        # Letters typed into it are no commands of Jupyter, which sees the element around it only.
        assert page.locator("#el").get_attribute("data-lm-suppress-shortcuts") == "true"
        # Its styles stay within: the notebook's own heading has none of them.
        color = "e => getComputedStyle(e).fontFamily"
        own, theirs = page.locator("#el h1"), page.locator("h1", has_text="Notebook")
        assert own.evaluate(color) != theirs.evaluate(color)


TWO_VIEWS = """async ([esm, state]) => {
    const sent = [];
    const model = { get: (name) => state[name], on: () => {}, send: ({ id }) => sent.push(id) };
    const module = await import(URL.createObjectURL(new Blob([esm], { type: "text/javascript" })));
    for (const name of ["div", "p"])
        await module.default.render({ model, el: document.createElement(name) });
    return sent;
}"""
"""Two views of one widget; the numbers of the questions that they ask at once."""
BRIDGE = """async ([esm, state]) => {
    const coded = (buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer)));
    const plain = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
    const heard = [];
    const model = {
        get: (name) => state[name],
        on: (_, listener) => heard.push(listener),
        send: async (content, _, buffers = []) => {
            const [told, files] = await kernel(content, buffers.map(coded));
            const views = files.map((file) => new DataView(plain(file)));
            for (const listener of heard) listener(told, views);
        },
    };
    const url = URL.createObjectURL(new Blob([esm], { type: "text/javascript" }));
    const module = await import(url);
    await module.default.render({ model, el: document.getElementById("el") });
}"""
"""Stands in for a notebook, which keeps the state of the widget and carries its messages."""
