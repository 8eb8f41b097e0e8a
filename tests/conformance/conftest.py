"""Writes what the conformance run found, where the run was asked for by its folder."""

from typing import Any

import pytest

from outcome import Rows, write

_rows: Rows = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    row: Any = dict(report.user_properties).get("conformance")
    if report.when == "call" and row and not report.skipped:
        _rows[f"{row['group']}: {row['family']}"] = row


def pytest_sessionfinish(session: pytest.Session) -> None:
    asked = any("conformance" in str(argument) for argument in session.config.args)
    if asked and _rows and not hasattr(session.config, "workerinput"):
        write(_rows)
