"""The explorer over HTTP: who may ask, what may be read, and one computation at a time."""

import io
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from condec.basis.errors import OptionError
from condec.basis.locks import held
from condec.explorer import server
from condec.explorer.session import Session
from condec.modes.annotations import FILE, read_names
from condec.run.verify import verify_run
from condec.store import RunFolder
from explored import explored_run

HEADERS = {"X-Condec": "1"}


@pytest.fixture
def client(session: Session) -> TestClient:
    return TestClient(server.app_of(session), base_url="http://127.0.0.1:8765")


def test_pages_and_answers(client: TestClient, session: Session) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "script-src http://127.0.0.1:8765/static/;" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert client.get("/static/explorer.js").status_code == 200
    assert client.get("/static/report/report.css").status_code == 200
    assert "the report" in client.get("/report/index.html").text
    offered = client.get("/api/inputs").json()
    assert offered == session.offered()
    picture = client.get("/api/picture", params={"id": offered[0]["id"]})
    assert picture.content.startswith(b"\x89PNG")
    answer = client.post("/api/explain", json={"id": "photo 7"}, headers=HEADERS).json()
    site = answer["sites"][0]
    asked = {"key": answer["key"], "site": site["key"], "factors": {site["parts"][0]["name"]: 0.0}}
    turned = client.post("/api/turn", json=asked, headers=HEADERS).json()
    assert turned == session.turn(**asked)
    saved = client.post("/api/page", json={"key": answer["key"]}, headers=HEADERS)
    assert saved.content.startswith(b"PK")
    assert "attachment" in saved.headers["content-disposition"]


@pytest.mark.parametrize(
    "path",
    ["/report/../run.toml", "/report/%2e%2e/run.toml", "/report/..%2frun.toml", "/run.toml",
     "/static/..%2fserver.py", "/report//etc/passwd", "/static/%2e%2e/session.py"],
)  # fmt: skip
def test_no_path_leads_outside(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_links_in_the_report_are_not_followed(client: TestClient, session: Session) -> None:
    link = session.run.folder.report.with_name("link.html")
    link.symlink_to(session.run.folder.path / "run.toml")
    try:
        assert client.get("/report/link.html").status_code == 404
    finally:
        link.unlink()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example:8765"}, 421),
        ({"host": ""}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "localhost:8765"}, 200),
        ({"origin": "http://127.0.0.1:8765"}, 200),
    ],
)
def test_pages_from_elsewhere_get_nothing(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    assert client.get("/", headers=headers).status_code == status


def test_questions_need_a_header_that_other_pages_cannot_set(client: TestClient) -> None:
    answer = client.post("/api/explain", json={"id": "photo 7"})
    assert answer.status_code == 403
    assert "X-Condec" in answer.json()["error"]


def test_of_the_scripts_of_a_report_only_ours_runs(client: TestClient, session: Session) -> None:
    own = session.run.folder.report.parent / "assets" / "report.js"
    own.parent.mkdir(exist_ok=True)
    own.write_text("alert('theirs')")
    assert "theirs" not in client.get("/report/assets/report.js").text
    own.with_name("theirs.js").write_text("theirs")
    assert client.get("/report/assets/theirs.js").status_code == 404
    policy = client.get("/report/index.html").headers["content-security-policy"]
    assert "script-src http://127.0.0.1:8765/report/assets/;" in policy


def test_names_of_modes(client: TestClient, session: Session) -> None:
    site = session.modes[0].site.key
    entry = {"name": "🎻", "note": "", "group": "", "atom": {"0": 1.0}, "mode": 3}
    try:
        assert client.get("/api/annotations").json() == {}
        assert client.post("/api/annotations", json={site: [entry]}).status_code == 403
        for one in (site, "elsewhere"):
            kept = client.post("/api/annotations", json={one: [entry]}, headers=HEADERS).json()
        assert kept == {site: [entry], "elsewhere": [entry]}
        assert read_names(session.run.folder.path) == kept
        wrong = client.put("/api/annotations", json={site: [{"name": "x"}]}, headers=HEADERS)
        assert wrong.status_code == 400
        assert "names.json of a run has them; got KeyError" in wrong.json()["error"]
        assert client.get("/api/annotations").json() == kept
        answer = client.put("/api/annotations", json={site: [entry]}, headers=HEADERS)
        assert answer.json() == {site: [entry]}
    finally:
        (session.run.folder.path / FILE).unlink(missing_ok=True)


def test_a_failure_is_told_in_json(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "offered", lambda: 1 / 0)
    app = server.app_of(session)
    client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    answer = client.get("/api/inputs")
    assert (answer.status_code, answer.json()["error"][:26]) == (500, "explore: ZeroDivisionError")


def test_hosts_without_a_name_are_refused(session: Session) -> None:
    with pytest.raises(OptionError, match="no address that others can open"):
        server.serve(session, "0.0.0.0", 0, print)


def test_a_token_is_asked_for(session: Session) -> None:
    app = server.app_of(session, hosts=("10.0.0.7",), token="secret")
    client = TestClient(app, base_url="http://10.0.0.7:8765")
    assert client.get("/").status_code == 401
    assert client.get("/static/explorer.js").status_code == 401
    assert client.get("/?token=guess").status_code == 401
    assert client.get("/?token=sécret").status_code == 401
    opened = client.get("/?token=secret")
    assert opened.status_code == 200
    assert "token" not in str(opened.url)
    assert "httponly" in opened.history[0].headers["set-cookie"].lower()
    assert client.get("/api/inputs").status_code == 200


@pytest.mark.parametrize(
    ("path", "sent", "problem"),
    [
        ("explain", {"content": b"{"}, "expected a JSON object"),
        ("explain", {"content": b"[" * 100_000}, "expected a JSON object"),
        ("explain", {"json": [1]}, "expected a JSON object"),
        ("explain", {"json": {"id": "../x"}}, "there is no input '../x'"),
        ("turn", {"json": {"key": 1, "site": "a", "factors": {}}}, "key: expected a text; got 1.0"),
        ("turn", {"json": {"key": "a", "site": "a", "factors": {"m": "1"}}}, "factors, numbers"),
        ("turn", {"json": {"key": "a", "site": "a", "factors": {"m": True}}}, "factors, numbers"),
        ("turn", {"json": {"key": "a", "site": "a", "factors": {}}}, "no longer kept"),
        ("page", {"json": {}}, "no longer kept"),
        ("upload", {"content": b"no picture"}, "expected a picture"),
        ("upload", {"content": bytes(21 * 2**20)}, "at most 20 MiB"),
        ("upload", {"content": b"text", "headers": {"content-type": "text/plain"}}, "upload.txt"),
    ],
)  # fmt: skip
def test_bad_questions(client: TestClient, path: str, sent: dict[str, Any], problem: str) -> None:
    sent = sent | {"headers": HEADERS | sent.get("headers", {})}
    answer = client.post(f"/api/{path}", **sent)
    assert answer.status_code == 400
    assert problem in answer.json()["error"]


def test_an_unpicklable_array_is_not_unpickled(client: TestClient) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return exec, ("raise SystemExit('owned')",)

    content = io.BytesIO()
    np.save(content, np.array([Evil()], dtype=object), allow_pickle=True)
    answer = client.post("/api/upload", content=content.getvalue(), headers=HEADERS)
    assert answer.status_code == 400
    assert "pickle" in answer.json()["error"]


def test_one_computation_at_a_time_and_not_too_many_wait(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, most, lock, go = [0], [0], threading.Lock(), threading.Event()

    def slow(name: str) -> dict[str, Any]:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        go.wait(10)
        with lock:
            at_once[0] -= 1
        return {"name": name}

    monkeypatch.setattr(session, "explain", slow)
    with TestClient(server.app_of(session), base_url="http://127.0.0.1") as client:
        with ThreadPoolExecutor(24) as pool:
            asked = [
                pool.submit(client.post, "/api/explain", json={"id": str(n)}, headers=HEADERS)
                for n in range(24)
            ]
            deadline = time.time() + 10
            while sum(one.done() for one in asked) < 8 and time.time() < deadline:
                time.sleep(0.01)
            assert client.get("/api/inputs").status_code == 200  # pages are read meanwhile
            go.set()
            codes = sorted(one.result().status_code for one in asked)
    assert codes == [200] * 16 + [503] * 8
    assert most[0] == 1


def test_ports(session: Session) -> None:
    first = server._bound("127.0.0.1", None)
    second = server._bound("127.0.0.1", None)
    taken = first.getsockname()[1]
    assert second.getsockname()[1] > taken
    with pytest.raises(OptionError, match=f"cannot listen on 127.0.0.1, port {taken}"):
        server._bound("127.0.0.1", taken)
    with pytest.raises(OptionError, match=r"cannot listen on 192\.0\.2\.1"):
        server._bound("192.0.2.1", 0)
    first.close()
    second.close()


@pytest.mark.slow
def test_jobs_fit_measure_and_are_cancelled(tmp_path: Path) -> None:
    session = explored_run(tmp_path)
    folder, before = session.run.folder, session.modes
    client = TestClient(server.app_of(session), base_url="http://127.0.0.1:8765", headers=HEADERS)

    def ask(name: str, **given: Any) -> Any:
        answer = client.post(f"/api/{name}", json=given)
        assert answer.status_code == 200, answer.text
        return answer.json() if "json" in answer.headers["content-type"] else answer.text

    def ended(job: dict[str, Any]) -> dict[str, Any]:
        while (told := ask("jobs")[0])["state"] in ("waiting", "running"):
            time.sleep(0.1)
        assert told["job"] == job["job"]
        return dict(told)

    old = ask("explain", id="photo 7")
    fit = ask("start", link="fit", learner="nmf", n_modes="2")
    assert fit["words"] == "Modes: nmf, 2 at each site"
    told = ended(fit)
    assert told["state"] == "done", told
    assert [bar["bar"] for bar in told["bars"]] == ["fit"]
    found = ask("explain", id="photo 7")
    assert [modes.n_modes for modes in session.modes] == [2] * len(before)
    assert session.run.plan.fit.name == "nmf"
    assert found["outputs"] == old["outputs"]
    ask("turn", key=old["key"], site=old["sites"][0]["key"], factors={})  # as it was asked
    # A control curve of a mode that is chosen, as the command of its toml measures it.
    modes = session.modes[-1]
    pair = [modes.site.key, int(modes.ids[0]), modes.dictionary]
    of_it = {"site": pair[0], "mode": pair[1], "dictionary": pair[2]}
    older = [pair[0], pair[1], before[-1].dictionary]
    answer = client.post("/api/start", json={"link": "control", "modes": [older]})
    assert (answer.status_code, "fitted again" in answer.text) == (400, True)
    toml = ask("selection", modes=[pair])
    assert toml.startswith(f'[[modes]]\nsite = "{pair[0]}"\nmode = {pair[1]}\nlabel = ')
    assert ask("curves", **of_it) == []
    told = ended(ask("start", link="control", modes=[pair]))
    assert told["state"] == "done", told
    curves = ask("curves", **of_it)
    table = RunFolder(folder.path).read_table("mode_control", pair[0], "nmf")
    assert table is not None
    own = next(curve for curve in curves if curve["ranking"] == "mode")
    rows = table[(table["ranking"] == "mode") & (table["edit"] == own["edit"])]
    assert own["fraction"] == rows["fraction"].tolist()
    assert len(curves) > 1

    # Cancelled at once, or at work: the run is as it was, and free.
    def damaged() -> list[str]:
        files = [damage.file for damage in verify_run(folder.path).damages]
        return [file.name for file in files if "report" not in file.parts]  # written by hand

    assert not damaged()
    fit = ask("start", link="fit", learner="sae", n_modes="64")
    time.sleep(1)
    with held(folder.path):  # waits for the lock, or has not come to it yet
        ask("cancel", job=fit["job"])
        assert ended(fit)["state"] == "cancelled"
    assert not damaged()
    with held(folder.path):
        told = ended(ask("start", link="report"))
        assert told["state"] == "failed"
        assert "in use by" in " ".join(told["said"])
    session.jobs.close()


@pytest.mark.parametrize(
    ("name", "given", "problem"),
    [
        ("start", {"link": "collect"}, "link: expected one of fit, control, report; got 'collect'"),
        ("start", {"link": "fit", "learner": "best"}, "learner must be one of"),
        ("start", {"link": "fit", "learner": "import:/etc/hostname"}, "learner must be one of"),
        ("start", {"link": "fit", "learner": ["nmf"]}, "learner must be one of"),
        ("start", {"link": "fit", "n_modes": "9" * 5000}, "n_modes: expected a number"),
        ("start", {"link": "fit", "n_modes": "many"}, "n_modes: expected a number"),
        ("start", {"link": "fit", "n_modes": "3; rm -r"}, "n_modes: expected a number"),
        ("start", {"link": "control", "modes": []}, "no mode is chosen"),
        ("start", {"link": "control", "modes": [["nowhere", 1, ""]]}, r"expected \[site, mode"),
        ("start", {"link": "control", "modes": [["block1", "x", ""]]}, "mode: expected a number"),
        ("selection", {"modes": [["block1", 9, ""]]}, "modes were fitted again since mode 9"),
        ("selection", {"modes": [[["block1"], 9, ""]]}, r"expected \[site, mode"),
        ("cancel", {"job": 7}, "job 7 has ended"),
        ("cancel", {"job": "7"}, "job: expected a number; got '7'"),
        ("weights", {"key": "a", "site": "b", "factors": {}}, "no longer kept"),
        ("weights", {"key": "a", "site": "b", "factors": [1]}, "expected factors, numbers"),
        ("open", {}, "there is no question 'open'"),
    ],
)
def test_bad_orders(client: TestClient, name: str, given: dict[str, Any], problem: str) -> None:
    answer = client.post(f"/api/{name}", json=given, headers=HEADERS)
    assert answer.status_code == 400
    assert re.search(problem, answer.json()["error"])


def test_what_changes_something_is_asked_by_post(client: TestClient) -> None:
    for name in ("start", "cancel", "explain", "turn"):
        answer = client.get(f"/api/{name}", params={"link": "fit", "job": 1})
        assert answer.status_code == 400
        assert "is asked by POST" in answer.json()["error"]
    assert client.post("/api/start", json={"link": "fit"}).status_code == 403
    assert client.get("/api/jobs").json() == []


def test_the_end_leaves_out_what_waits(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go, waiting = threading.Event(), threading.Event(), []

    def run(own: Any, sockets: Any) -> None:
        thread = own.config.app.state.work._thread
        waiting.append(thread.submit(lambda: (began.set(), go.wait(10))))
        waiting.append(thread.submit(print, "never"))
        assert began.wait(10)
        for one in sockets:
            one.close()

    monkeypatch.setattr(server.uvicorn.Server, "run", run)
    monkeypatch.setattr(session.jobs, "close", lambda: None)
    server.serve(session, "127.0.0.1", None, lambda _: None)
    go.set()
    assert waiting[1].cancelled()
