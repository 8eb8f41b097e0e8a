"""The explorer in a notebook: messages of the page, and what the kernel answers."""

import sys
from typing import Any

import pytest

import condec
from condec.basis.errors import DependencyError, OptionError
from condec.explorer.notebook import answered
from condec.explorer.session import Session

pytest.importorskip("anywidget", reason="anywidget is not installed")


@pytest.fixture(scope="module")
def widget(session: Session) -> Any:
    return condec.show(session.run.folder.path, trust_code=True)


def asked(widget: Any, name: str, given: object = None, *buffers: bytes) -> Any:
    """Send what the page sends, as the kernel gets it; what is sent back."""
    sent: list[Any] = []
    widget.send, before = lambda *told: sent.append(told), widget.send
    try:
        content = {"id": 5, "name": name, "given": given or {}}
        widget._handle_custom_msg(content, [memoryview(one) for one in buffers])
    finally:
        widget.send = before
    ((told, files),) = sent
    assert told["id"] == 5
    return (told, files[0]) if files else told


def test_the_page_is_that_of_the_explorer(widget: Any) -> None:
    assert widget.html.startswith("<main")
    assert 'id="offered"' in widget.html
    assert "<script" not in widget.html
    assert ":root" not in widget.css
    assert ":host {" in widget.css
    assert "\n.body {" in widget.css
    assert "export default { render }" in widget._esm
    assert "import " not in widget._esm
    assert {"html", "css", "_esm"} <= set(widget.get_state())


def test_messages_are_answered_as_questions_over_http(widget: Any, session: Session) -> None:
    assert asked(widget, "inputs")["found"] == session.offered()
    told = asked(widget, "explain", {"id": "photo 7"})
    expected = session.explain("photo 7")
    assert told["status"] == 200
    assert {**told["found"], "key": ""} == {**expected, "key": ""}
    site = told["found"]["sites"][0]
    given = {"key": told["found"]["key"], "site": site["key"]}
    turned = asked(widget, "turn", given | {"factors": {site["parts"][0]["name"]: 0}})  # an int
    own = {"key": expected["key"], "site": site["key"]}
    assert turned["found"] == session.turn(**own, factors={site["parts"][0]["name"]: 0.0})
    told, page = asked(widget, "page", {"key": given["key"]})
    assert told["file"] == "application/zip"
    assert page.startswith(b"PK")
    told, picture = asked(widget, "picture", {"id": "photo 7"})
    assert picture.startswith(b"\x89PNG")
    one = [site["key"], int(session.modes[0].ids[0]), site["dictionary"]]
    told, toml = asked(widget, "selection", {"modes": [one]})
    assert toml.startswith(b"[[modes]]")
    uploaded = asked(widget, "upload", {"text": False}, picture)
    assert uploaded["found"]["name"].startswith("upload.png")
    assert asked(widget, "jobs")["found"] == []


@pytest.mark.parametrize(
    ("name", "given", "buffers", "problem"),
    [
        ("explain", {"id": "none"}, (), "there is no input 'none'"),
        ("explain", [1], (), "not a question of this page"),
        ("upload", {}, (), "not a question of this page"),
        ("upload", {}, (b"no picture",), "expected a picture"),
        ("cancel", {"job": 3}, (), "job 3 has ended"),
        ("__class__", {}, (), "there is no question '__class__'"),
    ],
)
def test_bad_messages(
    session: Session, name: str, given: object, buffers: tuple[bytes, ...], problem: str
) -> None:
    told, files = answered(session, {"id": 1, "name": name, "given": given}, buffers)
    assert told["status"] == 400
    assert problem in told["found"]["error"]
    assert not files


def test_what_is_missing_is_said(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(DependencyError, match=r"pip install 'condec\[notebook\]'"):
        condec.show(session.run)
    monkeypatch.undo()
    with pytest.raises(OptionError, match=r"expected a run\.toml or a folder with one"):
        condec.show(session.run.folder.path / "none")


def test_a_failure_is_told_too(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "offered", lambda: 1 / 0)
    told, _ = answered(session, {"id": 3, "name": "inputs", "given": {}}, [])
    said = "explore: ZeroDivisionError: division by zero"
    assert (told["id"], told["status"], told["found"]) == (3, 500, {"error": said})
