"""The explorer in a notebook: the same page, whose questions are messages to the kernel."""

import atexit
import json
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from condec.basis.errors import CondecError, DependencyError

if TYPE_CHECKING:
    from condec.explorer.session import Session
    from condec.run import Run

_STATIC: Final = Path(__file__).parent / "static"
_REPORT: Final = _STATIC.parents[1] / "report" / "static"


def show(run: "str | Path | Run", *, trust_code: bool = False) -> Any:
    """Show the explorer of a run in a notebook (Jupyter, VS Code, marimo, Colab).

    It asks the kernel, which needs no port and no other address. See docs/how-to/explore.md.

    Parameters
    ----------
    run : path, or Run
        A run folder, a run.toml, or what `condec.run.Run` made of one.
    trust_code : bool
        Run the code that a run folder names, and remember that.

    Returns
    -------
    anywidget.AnyWidget
        What the notebook shows as the value of a cell; `session` answers its questions.

    Raises
    ------
    DependencyError
        ``condec[notebook]`` is not installed.
    OptionError, StoreError, DataError
        There is no such run, it has no modes, or the model is not that of the store.
    """
    try:
        widgets, traitlets = import_module("anywidget"), import_module("traitlets")
    except ImportError as error:
        raise DependencyError(
            "show: the explorer in notebooks is not installed; pip install 'condec[notebook]'"
        ) from error
    # Here, so that `import condec` loads no drawing library.
    from condec.explorer.session import Session
    from condec.report.build import environment
    from condec.run import Run, config

    if not isinstance(run, Run):
        plan = config.with_noted(config.read(run))
        run = Run(plan, progress=False, trust_code=trust_code)
    session = Session(run)
    atexit.register(session.jobs.close)
    files = (_REPORT / "nodes.js", _STATIC / "explorer.js", _STATIC / "widget.js")
    page = environment(_STATIC.parent / "templates").get_template("main.html.jinja")
    kept = {name: traitlets.Unicode().tag(sync=True) for name in ("html", "css")}
    kind = type("Explorer", (widgets.AnyWidget,), {"_esm": _joined(files), **kept})
    widget = kind(html=page.render(about=session.about), css=_css())
    widget.session = session

    def told(_: object, content: Mapping[str, Any], buffers: Sequence[bytes | memoryview]) -> None:
        widget.send(*answered(session, content, buffers))

    widget.on_msg(told)
    return widget


def answered(
    session: "Session", content: Mapping[str, Any], buffers: Sequence[bytes | memoryview]
) -> tuple[dict[str, Any], list[bytes]]:
    """Answer a message of the page: its `id`, and `found`, or an error, or a file beside it."""
    from condec.explorer.questions import File, answer

    told: dict[str, Any] = {"id": content.get("id"), "status": 200, "found": None}
    name, given = str(content.get("name", "")), content.get("given", {})
    try:
        given = dict(json.loads(json.dumps(given), parse_int=float))
        if name == "upload":
            given = {"content": bytes(buffers[0]), "text": bool(given.get("text"))}
        found = answer(session, name, given)
    except CondecError as error:
        return told | {"status": 400, "found": {"error": str(error)}}, []
    except (TypeError, ValueError, IndexError) as error:
        said = f"explore: not a question of this page: {error}"
        return told | {"status": 400, "found": {"error": said}}, []
    except Exception as error:  # noqa: BLE001  # a page that hears nothing waits for ever
        said = f"explore: {type(error).__name__}: {error}"
        return told | {"status": 500, "found": {"error": said}}, []
    if isinstance(found, File):
        return told | {"file": found.kind}, [found.content]
    return told | {"found": found}, []


def _css() -> str:
    """Return the styles of report and explorer, of a part of another page: within a shadow root."""
    files = (_REPORT / "report.css", _STATIC / "explorer.css")
    text = re.sub(r"(?m)^(\s*)(?::root|html)\b", r"\1:host", _joined(files))
    return re.sub(r"(?m)^body\b", ".body", text)


def _joined(files: Sequence[Path]) -> str:
    return "\n".join(file.read_text("utf-8") for file in files)
