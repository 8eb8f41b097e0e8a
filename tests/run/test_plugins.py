"""Links that packages bring: found, planned, carried out, and forgotten with the modes."""

from dataclasses import dataclass

import pytest
import typer
from typer.testing import CliRunner

from condec import cli
from condec.basis import registry
from condec.basis.errors import DependencyError, OptionError
from condec.run import Link, Outcome, Plan, Run, config, plugins
from condec.run.links import chain, function


@dataclass(frozen=True)
class Options:
    size: int = 3


def count(run):
    """Count something."""
    return Outcome("count", "made", (), float(run.plan.options["count"].size))


LINK = Link(name="count", function=count, options=Options, kinds=("sound",))


@pytest.fixture(autouse=True)
def _installed(monkeypatch):
    """A package that brings the link ``count``, and no other one."""
    monkeypatch.setattr(registry, "names", lambda group: ("count",))
    monkeypatch.setattr(registry, "find", lambda group, name: LINK)
    for known in (plugins.brought, config._file_model):
        known.cache_clear()
    yield
    for known in (plugins.brought, config._file_model):
        known.cache_clear()


def test_it_stands_in_the_chain_of_its_kind_of_data_and_in_no_other():
    plan = config.from_dict({"sites": "a", "data": {"source": "sound:a.wav"}})
    assert plan.links == ("collect", "stats", "fit", "count", "report")
    assert config.from_dict({"sites": "a"}).links == plugins.LINKS
    assert plugins.link_names()[-2:] == ("count", "report")


def test_its_section_is_checked_and_written():
    record = {"sites": "a", "links": ["count"], "count": {"size": 5}}
    plan = config.from_dict(record)
    assert plan.options == {"count": Options(5)}
    assert config.to_dict(plan)["count"] == {"size": 5}
    assert "count" not in config.to_dict(config.from_dict({"sites": "a"}))
    wrong = {"sise": r"\[count\] has no key 'sise'; nearest: 'size'",
             "size": "count: size: expected a whole number; got '5'"}  # fmt: skip
    for key, message in wrong.items():
        with pytest.raises(OptionError, match=message):
            config.from_dict(record | {"count": {key: "5"}})


def test_it_is_carried_out(tmp_path):
    plan = Plan(out=tmp_path, base=tmp_path, sites=("a",), links=("count",))
    assert [outcome.seconds for outcome in chain(Run(plan))] == [3.0]
    assert function("count") is count


def test_a_package_that_does_not_import_takes_only_its_own_command_away(monkeypatch):
    def broken(group, name):
        raise DependencyError(f"{group} {name!r}: broken")

    monkeypatch.setattr(registry, "find", broken)
    monkeypatch.setattr(cli, "app", typer.Typer())
    for link in ("stats", "count"):
        cli._add_command(link)
    text = CliRunner().invoke(cli.app, ["--help"]).stdout
    assert "Statistics of contributions" in text
    assert "Cannot be used: condec.links 'count': broken" in " ".join(text.split())
