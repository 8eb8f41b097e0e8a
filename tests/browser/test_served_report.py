"""The report over HTTP, as the explorer serves it: records are fetched, names go into the run."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browsing import inaccessible, watched

pytest.importorskip("uvicorn", reason="the explorer is not installed")

import uvicorn

from condec.explorer import server
from condec.explorer.session import Session
from condec.modes import annotate, annotations
from condec.report import build_report, figures
from explored import explored_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    made = explored_run(tmp_path_factory.mktemp("served"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save_figure", _plain)
        build_report(made.run.folder.path)
    return made


def _plain(figure: Any, path: Path) -> Path:
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    return path


def _without_room(route: Any) -> None:
    if route.request.method == "GET":
        route.continue_()
    else:
        route.fulfill(status=400, json={"error": "no room"})


@pytest.fixture(scope="module")
def address(session: Session) -> Iterator[str]:
    bound = server._bound("127.0.0.1", 0)
    running = uvicorn.Server(uvicorn.Config(server.app_of(session), log_level="warning"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]})
    thread.start()
    yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
    running.should_exit = True
    thread.join()


def test_names_go_into_the_run(browser: Any, address: str, session: Session) -> None:
    modes = session.modes[0]
    for page in watched(browser, own=address):
        page.goto(f"{address}report/index.html")
        page.locator("#names", has_text="kept in the run as they are written").wait_for()
        page.locator(".network .mode a").first.click()
        page.locator("#mode h1", has_text="Mode").wait_for()
        assert inaccessible(page) == []
        page.locator(".naming summary").click()
        page.locator(".say [name=name]").fill("<b>hen</b>")
        with page.expect_response("**/api/annotations") as answer:
            page.locator(".say [name=name]").blur()
        assert answer.value.status == 200
        page.locator(".say [role=status]", has_text="Kept in the run.").wait_for()
        number = int(page.locator("#mode h1").inner_text().split()[1])
        ((row, said),) = annotations(session.run.folder.path, modes).items()
        assert (int(modes.ids[row]), said.name) == (number, "<b>hen</b>")
        page.goto(f"{address}report/index.html")
        page.locator("#names a", has_text="<b>hen</b>").click()
        page.locator("#mode h1", has_text="<b>hen</b>").wait_for()
        page.locator(".say [name=name]").fill("")
        page.locator(".say [name=name]").blur()
        page.locator(".say [role=status]", has_text="Kept in the run.").wait_for()
        assert annotations(session.run.folder.path, modes) == {}


def test_records_of_another_version_are_not_read(
    browser: Any, address: str, session: Session
) -> None:
    file = session.run.folder.report.parent / "data" / "run.js"
    text = file.read_text()
    file.write_text(text.replace('"form":', '"form":9'))
    site = session.modes[0].site.key
    for page in watched(browser, own=address):
        for name in ("index.html", "mode.html#any/sae/0", f"sites/{site}.html"):
            page.goto(f"{address}report/{name}")
            page.locator(".note", has_text="made by another version of condec").first.wait_for()
            assert page.locator("#mode h1, [data-modes] table").count() == 0
    file.write_text(text)


def test_what_others_wrote_meanwhile_stays(browser: Any, address: str, session: Session) -> None:
    modes, folder = session.modes[0], session.run.folder.path
    (folder / "names.json").unlink(missing_ok=True)
    for page in watched(browser, own=address):
        page.goto(f"{address}report/index.html")
        page.locator(".network .mode a").first.click()
        page.locator(".naming summary").wait_for()
        number = int(page.locator("#mode h1").inner_text().split()[1])
        own = modes.ids.tolist().index(number)
        other = (own + 1) % len(modes)
        annotate(folder, modes, other, name="by another")
        page.locator(".naming summary").click()
        page.locator(".say [name=name]").fill("mine")
        page.locator(".say [name=name]").blur()
        page.locator(".say [role=status]", has_text="Kept in the run.").wait_for()
        found = {row: one.name for row, one in annotations(folder, modes).items()}
        assert found == {own: "mine", other: "by another"}
        page.route("**/api/annotations", _without_room)
        page.locator(".say [name=name]").fill("lost")
        page.locator(".say [name=name]").blur()
        page.locator(".say [role=status]", has_text="Not kept: no room").wait_for()
        said = page.evaluate("Object.values(names.sites).flat().map((one) => one.name)")
        assert sorted(said) == ["by another", "mine"]
        page.unroute("**/api/annotations")
    (folder / "names.json").unlink()
