"""A small run under hostile names, ready to be explored."""

from dataclasses import replace
from pathlib import Path

from condec.explorer import Session
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
