"""Reports of real networks in a real browser: photos, CIFAR, a language model, a retina."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browsing import inaccessible, watched
from condec.report import build_report, figures
from example_runs import SITES, example_run

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.needs_shared]


def _plain(figure: Any, path: Path) -> Path:
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    return path


@pytest.fixture(scope="module", params=SITES)
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Report a few inputs of an example, at one site."""
    few = example_run(request.param, tmp_path_factory.mktemp(request.param), 16, "map")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save_figure", _plain)
        return build_report(few.out)


@pytest.fixture(params=[1280, 390])
def page(request: pytest.FixtureRequest, browser: Any) -> Iterator[Any]:
    yield from watched(browser, viewport={"width": request.param, "height": 800})


def test_pages_of_real_networks(page: Any, report: Path) -> None:
    text = "stories" in report.parents[1].as_posix()
    page.goto(report.as_uri())
    shown = page.locator(".network .mode")
    assert shown.count() >= 1
    (site,) = report.parent.glob("sites/*.html")
    for address in (report.as_uri(), site.as_uri()):
        page.goto(address)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert inaccessible(page) == []
    pictures = page.locator(".modes .text" if text else ".modes .tile image")
    assert pictures.count() >= 2
    page.locator(".modes .mode > a").first.click()
    page.locator("#mode h1", has_text="Mode").wait_for()
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert inaccessible(page) == []
    if text:
        assert page.locator(".texts .text span[title]").count() > 20
    else:
        sheet = page.locator(".row.map .tile image").first.get_attribute("href")
        loads = """(address) => new Promise((done) => { const one = new Image();
            one.onload = () => done(one.naturalWidth); one.onerror = () => done(0);
            one.src = address; })"""
        assert page.evaluate(loads, sheet) >= 3 * 32
        assert page.locator(".kind .tile").count() >= 1
    page.locator("#neighbours ~ .kind a").first.click()
    page.locator("#mode h1", has_text="Mode").wait_for()
