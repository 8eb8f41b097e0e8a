"""The explorer of real networks in a real browser: photos, CIFAR and a language model."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import condec
from browsing import inaccessible, watched
from condec.explorer.session import Session
from condec.run import Run
from condec.run.explain import modes_by
from example_runs import SITES, example_run
from explored import served, values

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.needs_shared]


@pytest.fixture(scope="module", params=SITES)
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Explore a few inputs of an example, at one site."""
    few = example_run(request.param, tmp_path_factory.mktemp(request.param), 12)
    return Session(Run(few, progress=False))


@pytest.fixture
def page(browser: Any, session: Session) -> Iterator[Any]:
    for address in served(session):
        for tab in watched(browser, own=address):
            tab.goto(address)
            yield tab


def check_sliders(page: Any, session: Session, x: Any, label: int | None = None) -> None:
    """Turn two parts by their sliders; the outputs that are shown are those of Python."""
    model = session.run.loaded.model
    if label is None and session.run.target.uses_labels:
        label = int(model(x).detach()[0].argmax())
    first = page.locator("#parts li").first
    first.wait_for(timeout=60_000)
    rows = page.locator("#parts li")
    names = [rows.nth(n).get_attribute("data-part") for n in range(2)]
    method = session.run.method
    if session.about["text"]:  # of a shorter text, from the ends of other texts
        ends = method.baseline.values[:, -x.shape[1] :]
        method = replace(method, baseline=replace(method.baseline, values=ends))
    found = condec.explain(model, x, modes_by(session.run), n_modes=10, label=label, method=method)
    shown = found.batch.output[0].double()
    largest = shown.topk(min(8, len(shown))).values.tolist()
    assert values(page, 1)[: len(largest)] == pytest.approx(largest, rel=6e-3, abs=1e-6)
    for n, factor in enumerate(("0", "2.5")):
        with page.expect_response("**/api/turn"):
            rows.nth(n).locator("input[type=range]").fill(factor)
    now = found.turned(found.by_site[0].site, dict(zip(names, (0.0, 2.5), strict=True)))[0].double()
    order = [*shown.topk(len(largest)).indices.tolist()]
    more = [n for n in now.topk(len(largest)).indices.tolist() if n not in order]
    expected = now[[*order, *more]].tolist()
    page.wait_for_function(
        "n => document.querySelectorAll('#outputs tbody tr').length === n", arg=len(expected)
    )
    page.wait_for_timeout(300)  # the last answer is drawn
    assert values(page, 2) == pytest.approx(expected, rel=6e-3, abs=1e-4)
    assert (now - shown).abs().max() > 1e-3


def test_sliders_give_what_python_gives(page: Any, session: Session) -> None:
    name = session.offered()[3]["id"]
    row = session.run.inputs.ids.index(name)
    page.locator("#offered button").nth(3).click()
    label = int(session.run.store.labels[session.run.store.sample_ids.index(name)])
    check_sliders(page, session, session.run.inputs.batch([row]), label if label >= 0 else None)
    assert inaccessible(page) == []


def test_what_a_user_gives(page: Any, session: Session, tmp_path: Path) -> None:
    if session.about["text"]:
        text = "Once upon a time there was a girl"
        page.locator("#text").fill(text)
        page.locator("#write button").click()
        (tmp_path / "own.txt").write_text(text)
        x = session.run.one_file(tmp_path / "own.txt").batch([0])
        check_sliders(page, session, x)
        assert "It came without a label" in page.locator("#said").inner_text()
        spans = page.locator("#words span")
        assert spans.all_inner_texts()[-len(text) :] == list(text)
        # In the last layer all goes through the last tokens, which are coloured.
        colours = {span.evaluate("e => e.style.background") for span in spans.all()}
        assert len(colours) > 1
        page.locator("#plain").check()
        assert spans.first.evaluate("e => e.style.background") == ""
        page.locator("#text").fill(text * 3)
        page.locator("#write button").click()
        problem = "the baseline was taken from texts of 48 tokens"
        page.locator("#said.wrong", has_text=problem).wait_for()
        return
    side = session.run.inputs.picture(0).shape[0]
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    (tmp_path / "own.png").write_bytes(content.getvalue())
    file = {"name": "own.png", "mimeType": "image/png", "buffer": content.getvalue()}
    page.locator("#file").set_input_files([file])
    check_sliders(page, session, session.run.one_file(tmp_path / "own.png").batch([0]))
    assert page.locator("#picture").is_visible()
    no_picture = "expected a picture (PNG, JPEG or WebP)"
    for bad, problem in (
        (content.getvalue()[:60], "upload.png"),  # its header is sound
        (b"GIF89a" + bytes(50), no_picture),
        (b"<svg onload=alert(1)>", no_picture),
    ):
        page.locator("#file").set_input_files([file | {"buffer": bad}])
        page.locator("#said.wrong", has_text=problem).wait_for()
    wide = io.BytesIO()
    np.save(wide, np.zeros((2, 3, side, side), np.float32))
    page.locator("#file").set_input_files([file | {"name": "two.npy", "buffer": wide.getvalue()}])
    page.locator("#said.wrong", has_text="2 inputs").wait_for()
