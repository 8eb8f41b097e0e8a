"""Take the picture of a report that the README shows, from the demo, in a headless Chromium.

    python docs/screenshots.py                     runs the demo, writes docs/assets/report.png
    python docs/screenshots.py RUN                 of a run that is there; block4, or its last site
    python docs/screenshots.py RUN --look FOLDER   all pages at 1280 and at 390 pixels, to look at

Needs playwright and a Chromium, as tests/browser does.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def take(opened: Any, page: Path, width: int, out: Path, *, whole: bool) -> None:
    """Take the picture of a page: all of it, or down to the end of its first charts."""
    tab = opened.new_page(viewport={"width": width, "height": _HEIGHT})
    tab.goto(page.resolve().as_uri())
    for image in tab.query_selector_all("img"):
        image.evaluate("image => { image.loading = 'eager'; return image.decode().catch(() => 0) }")
    box = None if whole else tab.query_selector(".charts").bounding_box()
    clip = box and {"x": 0, "y": 0, "width": width, "height": box["y"] + box["height"]}
    tab.screenshot(path=out, full_page=True, clip=clip)
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
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, browser() as opened:
        report = (given.run or demo(Path(folder))) / "report"
        pages = [report / "index.html", *sorted(report.glob("sites/*.html"))]
        if given.look is None:
            take(opened, pages[-1], WIDE, PICTURE, whole=False)
            return
        given.look.mkdir(parents=True, exist_ok=True)
        pages += sorted(report.glob("inputs/*.html"))
        pages += sorted(report.parent.glob("explain/*/index.html"))
        for page in pages:
            name = page.stem if page.is_relative_to(report) else page.parent.name
            for width in (WIDE, PHONE):
                out = given.look / f"{name}-{width}.png"
                take(opened, page, width, out, whole=True)


if __name__ == "__main__":
    main()
