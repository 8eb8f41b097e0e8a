"""A run folder that somebody made to do harm: every command does none, and says so clearly."""

import hashlib
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import condec.report
from condec import cli
from condec.store import RunFolder, Store
from small_runs import TOML, quick_report

NASTY = "\x1b[2J<script>alert(1)</script>|**b**\u202e"
NET = """
import collections, torch
from condec.testing.models import small_resnet

def make():
    inside = collections.OrderedDict({"a<b>\\x1b[2Jc": small_resnet(labels=3)})
    return torch.nn.Sequential(inside)
"""
MARKING = """
from pathlib import Path
Path(__file__).with_name("marker").write_text("it ran")
"""
NAMES = (
    "run",
    "collect",
    "stats",
    "fit",
    "control",
    "map",
    "report",
    "inspect",
    "compare",
    "verify",
)
PLACES = (
    "report", "analysis", "analysis/control.parquet", "tasks", "modes", "modes/{site}/kmeans",
    "modes/{site}/kmeans/modes.zarr", "log_odds", "log.jsonl", "run.toml", "contributions.zarr",
    "contributions.zarr/manifest",
)  # fmt: skip


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a whole run, but for its report, with names from the worst of places."""
    root = tmp_path_factory.mktemp("honest")
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 1), dtype=np.uint8)
    names = [NASTY, "b\x07", "c$x$"]
    np.savez(root / "data.npz", images=images, labels=np.arange(40) % 3, class_names=names)
    (root / "net.py").write_text(NET)
    toml = TOML.replace('"block', '"*.block').replace('"Small"', '"\\u001b[2J<img src=x>"')
    (root / "run.toml").write_text(toml.replace('device = "cpu"', "input_shape = [1, 6, 6]"))
    (root / "victim").mkdir()
    (root / "victim" / "file").write_text("kept")
    for link in ("collect", "stats", "fit", "control", "map"):
        result = CliRunner().invoke(cli.app, [link, str(root / "run.toml"), "-q"])
        assert result.exit_code == 0, result.output
    return root


def code(run: Path) -> None:
    """Change the code that the plan names; let another file be named as well."""
    (run.parent / "net.py").write_text(NET + MARKING)
    (run.parent / "own.py").write_text(MARKING + "\ndef f(images): return images / 255.0\n")
    text = (run / "run.toml").read_text()
    named = text.replace("[data]", '[data]\npreprocess = "own.py:f"')
    (run / "run.toml").write_text(named)


def out(run: Path) -> None:
    text = (run / "run.toml").read_text()
    (run / "run.toml").write_text(text.replace('out = "."', 'out = "../victim"'))


def out_absolute(run: Path) -> None:
    text, victim = (run / "run.toml").read_text(), run.parent / "victim"
    # Without the mark of condec, and with the model of another: still a run folder.
    words = text.replace('out = "."', f'out = "{victim}"').partition("\n")[2]
    (run / "run.toml").write_text(words)


def link_to(place: str) -> Callable[[Path], None]:
    def attack(run: Path) -> None:
        site = next((run / "modes").iterdir()).name
        path, away = run / place.format(site=site), run.parent / "victim" / "away"
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            shutil.move(path, away)
        else:
            away.mkdir()
        path.symlink_to(away)

    attack.__name__ = f"link {place}"
    return attack


def deep(name: str) -> Callable[[Path], None]:
    def attack(run: Path) -> None:
        for file in run.glob(name):
            text = "[" * 100_000 + "]" * 100_000
            file.write_text(f"{file.read_text()}\nx = {text}" if file.suffix == ".toml" else text)

    attack.__name__ = f"deep {name}"
    return attack


def label(run: Path) -> None:
    """Write a label that asks for a name of every number below it."""
    store = Store.open(run / "contributions.zarr")
    rows = store.read_shard(0)
    rows["inputs/label"][0] = 200_000_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("condec.store.shards.MOST_LABELS", 2**40)
        store.write_shard(0, rows)


def names(run: Path) -> None:
    """As it is: labels, the title and sites have hostile names."""


FAST = (code, out, link_to("report"))
SLOW = (
    names, label, out_absolute, *map(link_to, PLACES[1:]),
    *map(deep, ("run.toml", "tasks/*.json", "analysis/labels.json", "modes/*/*/dictionary.json",
                "analysis/left_out.json", "contributions.zarr/zarr.json",
                "contributions.zarr/manifest/*.json")),
)  # fmt: skip


def content(folder: Path, *, besides: Path) -> dict[str, str]:
    """Hash what lies in a folder, but not in one of its own."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if not file.is_relative_to(besides) and "__pycache__" not in file.parts:
            text = str(file.readlink()) if file.is_symlink() else ""
            found[str(file)] = (
                hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else text
            )
    return found


@pytest.mark.parametrize(
    "attack", [*FAST, *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW)],
    ids=lambda attack: attack.__name__,
)  # fmt: skip
def test_every_command_on_a_hostile_run(
    honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: Callable[[Path], None]
) -> None:
    if attack is not names:
        monkeypatch.setattr(condec.report, "build_report", quick_report)
    root = tmp_path / "foreign"
    shutil.copytree(honest, root)
    run = root / "run"
    attack(run)
    before = content(root, besides=run)
    known = {
        one.name or getattr(one.callback, "__name__", "") for one in cli.app.registered_commands
    }
    ended = dict[str, int]()
    for name in (name for name in NAMES if name in known):
        arguments = [name, str(run)] + ([str(honest / "run")] if name == "compare" else [])
        arguments += [] if name in ("inspect", "compare", "verify") else ["-q"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of another `out`
            result = CliRunner().invoke(cli.app, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), (
            name, result.exc_info,
        )  # fmt: skip
        assert "Traceback" not in result.output
        assert "\x1b" not in result.output
        assert "\u202e" not in result.output
        if result.exit_code == 2:
            assert result.stderr.startswith("condec: "), name
        ended[name] = result.exit_code
        assert not (root / "marker").exists(), f"{name} ran the code of the folder"
        assert content(root, besides=run) == before, f"{name} wrote outside of the run folder"
    print(attack.__name__, ended)
    if attack is code:
        assert {name for name, status in ended.items() if status == 2} >= {
            "run",
            "collect",
            "control",
        }
        assert ended["stats"] == ended["fit"] == 0
        assert ended["report"] == 2  # The plan names another model than the numbers have.
    if attack is names:
        page = RunFolder(run).report.read_text(encoding="utf-8")
        assert "<script>alert" not in page
        assert "<img src=x" not in page
