"""The command line: what it prints, its exit codes, and clean messages for every error."""

import json
import os
import signal
import time
import tomllib
import types
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from typer.testing import CliRunner, Result

import condec.report
from condec import cli
from condec.attribution import METHODS
from condec.run import LINKS, config, engines
from condec.store.store import Store
from forked import Command
from small_runs import NET, TOML, quick_report, write_source


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(condec.report, "build_report", quick_report)
    return write_source(tmp_path)


def condec_command(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def done(*arguments: object) -> Result:
    result = condec_command(*arguments)
    assert result.exit_code == 0, result.output
    return result


def test_run_says_what_was_made_and_ends_with_the_report(source: Path) -> None:
    result = done("run", source / "run.toml", "--quiet")
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:-2]] == [
        [link, "made"]
        for link in ("collect", "stats", "fit", "control", "map", "explain", "report")
    ]
    assert str(source / "run" / "contributions.zarr") in lines[0]
    assert lines[-2] == f"Report: {source / 'run' / 'report' / 'index.html'}"
    assert lines[-1] == f"Explore it: condec explore {source / 'run'}"
    assert config.read(source / "run").fit == config.read(source / "run.toml").fit


def test_links_one_by_one_on_the_run_folder(source: Path) -> None:
    done("collect", source / "run.toml", "-q")
    for link in ("stats", "fit", "control", "map", "explain", "report"):
        result = condec_command(link, source / "run", "--quiet")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith(f"{link:8} made")
    assert " MB (" in result.stdout.splitlines()[-1]  # the size of the report
    result = condec_command("fit", source / "run", "--quiet")
    assert result.stdout.startswith("fit      kept")
    assert "by their manifest alone; 'condec verify " in result.stdout
    assert condec_command("fit", source / "run", "-q", "--again").stdout.startswith("fit      made")


def test_a_chain_without_collect_needs_a_store_of_its_plan(source: Path) -> None:
    text = TOML.replace('sites = "block*"', 'sites = "block*"\nlinks = ["stats"]', 1)
    (source / "some.toml").write_text(text)
    result = condec_command("run", source / "some.toml", "-q")
    assert result.exit_code == 2
    assert not (source / "run").exists()
    condec_command("collect", source / "run.toml", "-q")
    done("run", source / "some.toml", "-q")
    assert config.read(source / "run").links == ("stats",)


def test_check_says_what_a_run_takes_and_makes_nothing(source: Path) -> None:
    for words in (["run", "--check"], ["plan", "--workers", "2", "--price", "1.5"]):
        lines = done(words[0], source / "run.toml", *words[1:]).stdout.splitlines()
        links = ["link", "collect", "fit", "control", "map", "explain", "in"]
        assert [line.split()[0] for line in lines[1:8]] == links
        assert ("2 workers" in lines[1]) == (words[0] == "plan")  # else one column says it
        assert (lines[-1] == "nothing ran; the plan is good") == (words[0] == "run")
    assert lines[-1].endswith("at 1.5 a worker and hour")
    (source / "two.toml").write_text('engine = {kind = "local", workers = 2}\n' + TOML)
    assert "2 workers" in done("plan", source / "two.toml").stdout
    assert not (source / "run").exists()
    wrong = (source / "run.toml").read_text().replace("n_modes = 3", "n_modes = 30")
    (source / "run.toml").write_text(wrong)
    for options in ([], ["--check"]):
        result = condec_command("run", source / "run.toml", *options)
        assert result.exit_code == 2
        assert "2 things keep this run from being done:" in result.stderr
        assert not (source / "run").exists()


def only(source: Path, *links: str) -> None:
    """Have the plan name some links alone: what takes long proves nothing about commands."""
    text = (source / "run.toml").read_text()
    (source / "run.toml").write_text(f"links = {json.dumps(links)}\n" + text)


def test_out_is_another_run_folder(source: Path) -> None:
    only(source, "collect", "stats")
    done("run", source / "run.toml", "-q", "--out", source / "elsewhere")
    assert (source / "elsewhere" / "run.toml").is_file()
    assert not (source / "run").exists()
    assert condec_command("stats", source / "elsewhere", "-q").stdout.startswith("stats    kept")


def test_collect_options_are_kept_in_the_run_folder(source: Path) -> None:
    result = condec_command(
        "collect", source / "run.toml", "-q", "--sites", "block1", "--sites", "stem",
        "--method", "actgrad", "--target", "top2:softmax", "--on-bad", "skip",
        "--batch-size", "auto", "--precision", "bfloat16", "--device", "cpu", "--device", "cpu",
        "--rows", "positions", "--keep", "3",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    store = Store.open(source / "run" / "contributions.zarr")
    assert [site.key for site in store.sites] == ["stem", "block1"]
    assert store.recipe["method"] == {"name": "ActGrad"}
    plan = config.read(source / "run")
    assert plan.sites == ("block1", "stem")
    assert (METHODS.text(plan.collect.method), plan.collect.on_bad) == ("actgrad", "skip")
    assert (plan.collect.batch_size, plan.collect.precision) == ("auto", "bfloat16")
    assert plan.collect.devices == ("cpu", "cpu")
    assert (plan.collect.rows, plan.collect.keep, plan.rows) == ("positions", 3, "positions")
    assert store.matrix("block1", rows="positions").shape == (3 * len(store), 4)
    done("stats", source / "run", "-q")


def test_twins_join_those_of_the_plan(source: Path) -> None:
    arguments = ("collect", source / "run.toml", "-q", "--twin")
    result = done(*arguments, "random-weights:block2", "--twin", "shuffled-labels")
    assert "and 2 more" in result.stdout
    folder = source / "run" / "twins"
    assert {path.name for path in folder.iterdir()} == {
        "random-weights%3Ablock2", "shuffled-labels",
    }  # fmt: skip
    done("collect", source / "run", "-q", "--twin", "shuffled-labels#1")
    names = [twin.name for twin in config.read(source / "run").collect.twins]
    assert names == ["random-weights:block2", "shuffled-labels", "shuffled-labels#1"]
    done("stats", source / "run", "-q")


def twin_names(source: Path) -> list[str]:
    return [twin.name for twin in config.read(source / "run").collect.twins]


def test_twins_are_not_forgotten_by_the_next_command(source: Path) -> None:
    plan, folder = source / "run.toml", source / "run"
    only(source, "collect", "stats", "fit", "report")
    table = folder / "analysis" / "statistics_twins.parquet"
    done("collect", plan, "-q", "--twin", "random-weights")
    done("stats", plan, "-q")
    assert table.is_file()
    for link in ("fit", "collect", "report"):
        done(link, plan, "-q")
        assert twin_names(source) == ["random-weights"]
    assert condec_command("stats", folder, "-q").stdout.startswith("stats    kept")
    assert table.is_file()
    done("collect", plan, "-q", "--twin", "random-weights#1")
    assert twin_names(source) == ["random-weights", "random-weights#1"]
    done("run", plan, "-q")
    assert twin_names(source) == ["random-weights", "random-weights#1"]
    assert set(pandas.read_parquet(table)["twin"]) == {"random-weights", "random-weights#1"}


@pytest.mark.parametrize("link", ["collect", "run"])
def test_a_device_that_is_not_there_leaves_nothing_behind(source: Path, link: str) -> None:
    text = TOML.replace("shard_size = 16", 'shard_size = 16, devices = ["cpu", "cuda:77"]')
    (source / "run.toml").write_text(text)
    result = condec_command(link, source / "run.toml", "-q")
    assert result.exit_code == 2
    assert "device 'cuda:77' cannot be used, there is cpu" in result.stderr
    assert not (source / "run").exists()


def test_a_refused_plan_leaves_the_run_folder_as_it_was(source: Path) -> None:
    condec_command("collect", source / "run.toml", "-q")
    before = (source / "run" / "run.toml").read_bytes()
    result = condec_command("collect", source / "run.toml", "-q", "--method", "ig:3")
    assert result.exit_code == 2
    assert "made by another recipe" in result.stderr
    (source / "run.toml").write_text(TOML.replace("ig:2", "ig:3"))
    result = condec_command("fit", source / "run.toml", "-q")
    assert result.exit_code == 2
    assert "of another plan: method.steps: had 2, wants 3" in result.stderr
    assert (source / "run" / "run.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "gone.toml"), "gone.toml: not readable"),
        (("fit", "run.toml"), "no contributions yet; run 'condec collect PLAN.toml' first"),
        (("collect", "run.toml", "--target", "best"), "target 'best': expected topK"),
        (("collect", "run.toml", "--twin", "random"), "twin 'random': expected random-w"),
        (("collect", "run.toml", "--twin", "random-weights:blok1"), "nearest: block1"),
        (("collect", "run.toml", "--method", "ig:0"), "steps must be at least 1, or 'auto'; got 0"),
        (("collect", "run.toml", "--keep", "0"), "collect: keep must be at least 1; got 0"),
        (("collect", "run.toml", "--on-bad", "hide"), "on_bad: expected one of raise, skip"),
        (("collect", "run.toml", "--batch-size", "many"), "batch_size: expected a whole number"),
        (("collect", "run.toml", "--precision", "int8"), "precision: expected one of model, bfl"),
        (("collect", "run.toml", "--sites", "blok1"), "no module of SmallResNet matches 'blok1'"),
        (("inspect", "resnet"), "model 'resnet': expected one of digits"),
        (("inspect", "python:net.py:make"), "give it, for example --input-shape 3,224,224"),
        (("inspect", "digits", "--input-shape", "a"), "input shape 'a': expected numbers"),
        (("inspect", "digits", "--input-shape", "3,0"), "input shape '3,0': expected numbers"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_errors_are_one_clean_message(
    source: Path, arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source)
    result = condec_command(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("condec: ")
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_debug_shows_the_traceback(source: Path) -> None:
    result = condec_command("--debug", "fit", source / "run.toml")
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "StoreError"


def test_usage_errors_are_the_parsers(source: Path) -> None:
    assert condec_command("fly").exit_code == 2
    assert condec_command("fit").exit_code == 2
    assert condec_command().exit_code in (0, 2)
    version = condec_command("--version")
    assert version.stdout.startswith("condec 0.")
    help_text = condec_command("--help").stdout
    assert "..." not in help_text.partition("Commands:")[2]
    for command in (*LINKS, "run", "inspect", "demo"):
        assert command in help_text


def test_interrupt_says_how_to_go_on(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("condec.run.links.collected_ahead", interrupted)
    result = condec_command("run", source / "run.toml", "-q")
    assert result.exit_code == 130
    assert "interrupted; the same command keeps what is whole (shards, " in result.stderr


def test_memory_that_does_not_suffice_is_told(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore")

    monkeypatch.setattr("condec.run.links.collected_ahead", fails)
    result = condec_command("run", source / "run.toml", "-q")
    assert result.exit_code == 2
    assert (
        "does not suffice (CUDA out of memory. Tried to allocate 2 GiB.); give a" in result.stderr
    )


def test_the_cluster_that_a_run_folder_names_is_joined_where_it_is_trusted(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    pool = types.SimpleNamespace(RayPool=lambda plan: asked.append(plan.address) or 1 / 0)
    monkeypatch.setattr(engines, "import_module", lambda name: pool)
    with (source / "run.toml").open("a") as plan:
        plan.write('\n[engine]\nkind = "ray"\naddress = "ray://theirs:1"\n')
    for command in (["fit"], ["run"], ["collect"], ["run", "--engine", "ray"], ["explain"]):
        refused = condec_command(*command, source)
        assert refused.exit_code == 2
        assert "names a Ray cluster, 'ray://theirs:1', which could run any code" in refused.stderr
    assert asked == []
    condec_command("fit", source, "--trust-code")
    condec_command("fit", source / "run.toml")
    condec_command("run", source, "--address", "ray://mine:1")
    assert asked == ["ray://theirs:1", "ray://theirs:1", "ray://mine:1"]


def test_real_ctrl_c_leaves_a_run_that_goes_on(source: Path) -> None:
    """A process of its own, stopped by SIGINT after its first shard."""
    slow = "\n    import time\n    net = small_resnet(labels=3)\n"
    slow += "    net.register_forward_pre_hook(lambda *_: time.sleep(0.05))\n    return net\n"
    (source / "net.py").write_text(NET.replace("\n    return small_resnet(labels=3)\n", slow))
    process = Command(source / "out", ["collect", str(source / "run.toml"), "-q"])
    manifest = source / "run" / "contributions.zarr" / "manifest"
    while not list(manifest.glob("shard-*.json")) and process.process.is_alive():
        time.sleep(0.01)
    assert process.process.pid is not None
    os.kill(process.process.pid, signal.SIGINT)
    assert process.end() == 130, process.output
    assert "the same command keeps what is whole" in process.output
    assert "Traceback" not in process.output
    assert 1 <= len(list(manifest.glob("shard-*.json"))) < 3
    done("collect", source / "run", "-q", "--trust-code")  # the run folder knows its plan by now
    store = Store.open(source / "run" / "contributions.zarr")
    store.verify()
    lines = (source / "run" / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["error"] == "Stopped: SIGINT"


def test_inspect_lists_modules_shapes_and_cuts(source: Path) -> None:
    result = done("inspect", f"python:{source / 'net.py'}:make", "--input-shape", "1,6,6")
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert "4 x 6 x 6" in rows["block1"]
    assert rows["block1"].rstrip().endswith("cut")
    assert not rows["block1.conv1"].rstrip().endswith("cut")
    assert "148" in rows["block1.conv1"]
    assert rows["head"].split()[-2:] == ["15", "cut"]
    assert rows["presets:"] == "presets: none fits"
    assert " ".join(rows["a"].split()) == "a sample alone gives what it gives in a batch yes"


def test_inspect_shows_the_presets_that_fit() -> None:
    result = done("inspect", "timm:resnet10t", "--input-shape", "3,32,32")
    assert result.stdout.splitlines()[-1] == "presets: preset:resnet_blocks"


def test_inspect_of_a_run_file_and_of_some_sites(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TOML.replace('device = "cpu"', "input_shape = [1, 6, 6]")
    (source / "run.toml").write_text(text)
    monkeypatch.chdir(source.parent)
    result = done("inspect", source / "run.toml", "--sites", "block*")
    table = result.stdout.partition("Proof of")[0]
    first = [line.split()[0] for line in table.splitlines()[2:] if line.strip()]
    assert first == ["block1", "block2"]


def test_notes_are_printed(source: Path) -> None:
    images = np.zeros((20, 1, 6, 6), dtype=np.float32)
    images[3] = np.nan
    np.savez(source / "data.npz", images=images)
    result = done("collect", source / "run.toml", "-q", "--on-bad", "skip")
    assert "note: 1 of 20 inputs could not be used, left out: 3" in result.stdout


def test_demo_is_the_chain_on_the_embedded_model(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(source, "collect", "report")
    monkeypatch.chdir(source)
    monkeypatch.setattr(config, "DEMO", tomllib.loads((source / "run.toml").read_text()))
    result = done("demo", "--out", "d", "-q")
    report, explore = result.stdout.splitlines()[-2:]
    assert report == f"Report: {source / 'd' / 'report' / 'index.html'}"
    assert explore == "Explore it: condec explore d"


def test_a_plan_written_by_hand_is_not_replaced(source: Path) -> None:
    text = TOML.replace('sites = "block*"', 'sites = "block*"\nout = "."', 1)
    (source / "run.toml").write_text(text)
    for command in ("run", "collect"):
        result = condec_command(command, source / "run.toml", "-q")
        assert result.exit_code == 2
        assert "run.toml was not written by condec" in result.stderr
    assert (source / "run.toml").read_text() == text
    assert not (source / "contributions.zarr").exists()


def test_code_of_a_run_folder_is_run_where_it_is_trusted(source: Path) -> None:
    text = TOML.replace('source = "npz:data.npz"', 'source = "npz:data.npz", preprocess="own.py:f"')
    (source / "run.toml").write_text(text.replace('device = "cpu"', "input_shape = [1, 6, 6]"))
    own = "def f(images):\n    return images.permute(0, 3, 1, 2) / 255.0\n"
    (source / "own.py").write_text(own)
    done("collect", source / "run.toml", "-q")
    done("collect", source / "run", "-q")  # what the user ran before may be run again
    done("fit", source / "run", "-q")
    (source / "net.py").write_text(NET + "# changed\n")
    for command in ("collect", "run", "inspect", "control", "map"):
        result = condec_command(command, source / "run")
        assert result.exit_code == 2, result.output
        assert "net.py: code that a run folder names is not run unasked; it has" in result.stderr
    for command in ("stats", "fit", "report"):
        done(command, source / "run", "-q")  # these need no model
    done("inspect", source / "run", "--trust-code")
    done("inspect", source / "run")
    (source / "own.py").write_text(own + "# changed\n")
    result = condec_command("collect", source / "run")
    assert "own.py: code that a run folder names" in result.stderr
    done("collect", source / "run", "-q", "--trust-code")
    done("collect", source / "run", "-q")
