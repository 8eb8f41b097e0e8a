"""A small run under hostile names, to be explored; sessions that are served, and their pages."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn

from condec.explorer.session import Session
from condec.run import Run, chain, config
from small_runs import hostile_source

EVIL = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "..")


def explored_run(folder: Path) -> Session:
    """Make the run and a report of one line, and open it."""
    source = hostile_source(folder, EVIL)
    links = ("collect", "fit", "explain")
    run = Run(replace(config.read(source / "run.toml"), links=links), progress=False)
    config.write(run.plan)
    assert [outcome.state for outcome in chain(run)] == ["made"] * 3
    run.folder.report.parent.mkdir()
    run.folder.report.write_text("<p style='color: red'>the report</p>")
    return Session(Run(config.read(source / "run.toml"), progress=False))


def served(session: Session) -> Iterator[str]:
    """Serve a session over HTTP, in a thread; its address."""
    from condec.explorer import server

    bound = server._bound("127.0.0.1", 0)
    server_of_it = uvicorn.Server(uvicorn.Config(server.app_of(session), log_level="warning"))
    thread = threading.Thread(target=server_of_it.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
    finally:
        server_of_it.should_exit = True
        thread.join()
        session.jobs.close()


def values(page: Any, column: int) -> list[float]:
    """Read a column of the outputs that the explorer shows."""
    cells = page.locator(f"#outputs tbody td:nth-of-type({column})").all_inner_texts()
    return [float(cell.replace("\N{MINUS SIGN}", "-")) for cell in cells]
