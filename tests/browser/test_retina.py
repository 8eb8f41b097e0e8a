"""The report of a retina in a real headless Chromium, under hostile names."""

from pathlib import Path
from typing import Any

import pytest

from browsing import inaccessible, watched
from retina_runs import retina_run

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return retina_run(tmp_path_factory.mktemp("retina"), "map", "explain").folder.report


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_of_a_retina(browser: Any, report: Path, width: int, scheme: str) -> None:
    size = {"width": width, "height": 800}
    for page in watched(browser, viewport=size, color_scheme=scheme):
        page.goto(report.as_uri())
        page.locator(".more a", has_text="Retina").click()
        assert page.locator("h1").inner_text() == "Retina"
        assert page.locator(".chart img").count() >= 5
        own, inputs = page.url, sorted(report.parent.glob("inputs/*.html"))
        site = (report.parent / "sites" / "relu1.html").as_uri()
        page.goto(site)
        mode = page.locator(".modes .mode > a").first.evaluate("a => a.href")
        for address in (report.as_uri(), own, site, mode, inputs[0].as_uri()):
            page.goto("about:blank")
            page.goto(address)
            page.wait_for_timeout(200)
            page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
            for image in page.locator("main img").all():
                image.evaluate("i => { i.loading = 'eager'; return i.decode(); }")
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, address
            assert inaccessible(page) == [], address
            assert page.locator("main i, main b", has_text="open & shut").count() == 0, address
