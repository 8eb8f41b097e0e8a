"""Take the pictures of the README, of the tour and of two runs, in a headless Chromium.

    python docs/screenshots.py                     the demo: report.png, compare.png, tour-*.png
    python docs/screenshots.py RUN                 of a run that is there; block4, or its last site
    python docs/screenshots.py RUN --look FOLDER   all pages at 1280 and at 390 pixels, to look at
    python docs/screenshots.py RUN --cards SITE OUT   cards of modes of a site whose name begins so;
        examples/stories/run, lm.model.layers.4.mlp, docs/assets/language-modes.png

Needs playwright and a Chromium, as tests/browser does.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).resolve().parent / "assets"
PICTURE = Path(__file__).resolve().parent / "assets" / "report.png"
WIDE, PHONE = 1280, 390
_HEIGHT = 1200


@contextmanager
def browser() -> Iterator[Any]:
    """Start the machine's Chromium."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("no chromium on this machine: apt-get install chromium")
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


def take(opened: Any, address: str, width: int, out: Path, down_to: str = "") -> None:
    """Take the picture of a page: all of it, or down to the end of one of its parts."""
    tab = opened.new_page(viewport={"width": width, "height": _HEIGHT})
    tab.goto(address)
    tab.wait_for_timeout(500)  # records are loaded
    for image in tab.query_selector_all("img"):
        image.evaluate("image => { image.loading = 'eager'; return image.decode().catch(() => 0) }")
    box = tab.query_selector(down_to).bounding_box() if down_to else None
    clip = box and {"x": 0, "y": 0, "width": width, "height": box["y"] + box["height"]}
    tab.screenshot(path=out, full_page=True, clip=clip)
    tab.close()


@contextmanager
def explorer(run: Path) -> Iterator[str]:
    """Serve a run, and give the address of its page."""
    command = [sys.executable, "-u", "-m", "condec", "explore", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[1]
        finally:
            process.terminate()


def tour(opened: Any, run: Path) -> None:
    """Walk through the explorer as docs/tour.md tells it, and take a picture at each step."""
    with explorer(run) as address:
        tab = opened.new_page(viewport={"width": WIDE, "height": 900}, device_scale_factor=1.5)
        tab.goto(address)

        def take_from(first: str, last: str, name: str) -> None:
            above, below = (tab.locator(one).first.bounding_box() for one in (first, last))
            top, end = above["y"], below["y"] + below["height"]
            clip = {"x": 0, "y": max(0, top), "width": WIDE, "height": end - top + 12}
            tab.screenshot(path=ASSETS / f"tour-{name}.png", full_page=True, clip=clip)

        tab.locator("#offered button").nth(4).click()
        tab.locator("#parts li").first.wait_for()
        tab.locator("#sites button").last.click()
        tab.wait_for_function(
            "[...document.querySelectorAll('#offered img')].every((one) => one.complete)"
        )
        tab.evaluate("scrollTo(0, 0)")
        take_from("nav", "#answer", "input")
        with tab.expect_response("**/api/turn"):
            tab.locator("#parts input[type=range]").first.fill("0")
        tab.locator("#outputs td.moved").first.wait_for()
        tab.evaluate("scrollTo(0, 0)")
        take_from("#answer", "#answer", "turned")
        tab.locator("#parts input[type=checkbox]").first.check()
        tab.locator("#control-chosen").click()
        tab.locator("#jobs li[data-state=done]").wait_for(timeout=300_000)
        tab.locator("#curves figure").first.wait_for()
        tab.evaluate("scrollTo(0, 0)")
        take_from("#work", "#curves", "curve")
        tab.close()


def compared(run: Path, folder: Path) -> Path:
    """Fit a copy of a run by k-means, and write the page that compares both."""
    from dataclasses import replace

    from condec import KMeans
    from condec.run import Run, chain, config

    shutil.copytree(run, folder / "by an autoencoder")
    other = shutil.copytree(run, folder / "by k-means", ignore=shutil.ignore_patterns("report"))
    plan = config.read(other)
    fit = replace(plan.fit, learner=KMeans(n_modes=16), modes_per_unit=None, rows_per_mode=None)
    config.write(changed := replace(plan, fit=fit, links=("fit", "map", "report")))
    list(chain(Run(changed, progress=False)))
    command = ["compare", "by an autoencoder", "by k-means", "--modes", "--out", "both"]
    subprocess.run([sys.executable, "-m", "condec", *command], check=True, cwd=folder)
    return folder / "both" / "index.html"


def take_cards(opened: Any, page: Path, out: Path, n: int = 3) -> None:
    """Take the picture of the first cards of a page, which lie in one row."""
    tab = opened.new_page(viewport={"width": WIDE, "height": _HEIGHT}, device_scale_factor=1.5)
    tab.goto(page.resolve().as_uri())
    first, last = (tab.query_selector_all(".modes .mode")[at].bounding_box() for at in (0, n - 1))
    size = {key: last[at] + last[key] - first[at] for at, key in (("x", "width"), ("y", "height"))}
    tab.screenshot(path=out, full_page=True, clip={"x": first["x"], "y": first["y"], **size})
    tab.close()


def demo(folder: Path) -> Path:
    """Run the demo."""
    command = [sys.executable, "-m", "condec", "demo", "--quiet", "--out", str(folder / "demo")]
    subprocess.run(command, check=True, cwd=folder)
    return folder / "demo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--look", type=Path, metavar="FOLDER")
    parser.add_argument("--cards", nargs=2, metavar=("SITE", "OUT"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, browser() as opened:
        report = (given.run or demo(Path(folder))) / "report"
        pages = [report / "index.html", *sorted(report.glob("sites/*.html"))]
        if given.cards is not None:
            site, out = given.cards
            take_cards(
                opened, next(page for page in pages if page.stem.startswith(site)), Path(out)
            )
            return
        if given.look is None:
            take(opened, pages[-1].resolve().as_uri(), WIDE, PICTURE, ".modes")
            tour(opened, report.parent)
            both = compared(report.parent, Path(folder)).as_uri()
            take(opened, both, WIDE, ASSETS / "compare.png", "#compare tr:nth-child(8)")
            return
        given.look.mkdir(parents=True, exist_ok=True)
        pages += sorted(report.glob("inputs/*.html"))
        pages += sorted(report.parent.glob("explain/*/index.html"))
        shown = {
            page.stem if page.is_relative_to(report) else page.parent.name: page.resolve().as_uri()
            for page in pages
        }
        root = report.resolve().as_uri()
        shown |= {"labels": f"{root}/label.html", "label": f"{root}/label.html#0"}
        for place in sorted(report.glob("sites/*.html"))[-1:]:
            found = re.search(r"mode\.html#[^\"]+", place.read_text(encoding="utf-8"))
            shown |= {"mode": f"{root}/{found[0]}"} if found else {}
        shown["compare"] = compared(report.parent, Path(folder)).as_uri()
        for name, address in shown.items():
            for width in (WIDE, PHONE):
                take(opened, address, width, given.look / f"{name}-{width}.png")


if __name__ == "__main__":
    main()
