"""What is checked before the first pass, what is left out with a note, and what a run takes."""

from pathlib import Path

import numpy as np
import pytest
import torch

import condec.report
from condec.basis.errors import CondecError, DataError, OptionError, StoreError
from condec.dictionary import KMeans
from condec.run import Outcome, Run, chain, config, links
from condec.run.beforehand import check_run
from condec.run.costs import costs
from condec.store import RunFolder
from condec.store.batches import BatchPlan
from small_runs import NET, quick_report, run_of, write_source


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(condec.report, "build_report", quick_report)
    return write_source(tmp_path)


def change(source: Path, old: str, new: str) -> None:
    text = (source / "run.toml").read_text()
    assert old in text
    (source / "run.toml").write_text(text.replace(old, new))


def carried_out(run: Run) -> dict[str, Outcome]:
    config.write(run.plan)
    return {outcome.link: outcome for outcome in chain(run)}


def noted_in(folder: Path) -> list[str] | None:
    run = RunFolder(folder)
    noted: list[str] | None = run.read_json(run.left_out)
    return noted


def with_labels(source: Path, labels: np.ndarray | None) -> None:
    with np.load(source / "data.npz") as arrays:
        images = arrays["images"]
    np.savez(source / "data.npz", images=images, **({} if labels is None else {"labels": labels}))


GROUPS = ("data = {", 'data = {superclasses = "groups.json", ')
WRONG = {
    r"groups.json: superclasses of 2 labels; .* has 3. Give a json list with one name for every": (
        *GROUPS, '["x", "y"]',
    ),
    r"groups.json: cannot be read as a json list with the name of every label's superclass": (
        *GROUPS, "3",
    ),
    r"superclasses: groups.json: Hierarchy: no label is called 'x'": (*GROUPS, '{"q": "x"}'),
    r"superclasses: 'kind' is neither a json or csv file nor one of cifar10.*no csv with such": (
        GROUPS[0], 'data = {superclasses = "kind", ', "",
    ),
    r"superclasses: cifar10: Hierarchy: no label is called 'bird'": (
        GROUPS[0], 'data = {superclasses = "cifar10", ', "",
    ),
    r"label names 'a', 'b', 'c' are neither synsets such as n02084071 nor": (
        GROUPS[0], 'data = {superclasses = "wordnet", ', "",
    ),
    r"groups.json: Hierarchy: expected at least one label": (
        *GROUPS, '["", "", ""]',
    ),
    r"no result for stem; there is block1, block2": ('sites = "block2"', 'sites = "stem"', ""),
    r"control: labels \[7\] have no training row or .*; those with both: \[0, 1, 2\]": (
        "n_random = 1}", "n_random = 1, labels = [0, 7]}", "",
    ),
    r"fit: block1: KMeans: 30 modes need at least as many training rows; got 24": (
        "n_modes = 3", "n_modes = 30", "",
    ),
    r"fit: block1: 40 rows of .* units do not fit in 1e-06 GiB": (
        "held_out = 0.4", "held_out = 0.4, memory_gib = 1e-6", "",
    ),
    "Label: this target needs the label of every sample": (
        'target = "predicted"', 'target = "label"', "no labels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_what_the_plan_gets_wrong_is_told_before_the_first_pass(
    source: Path, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, text = WRONG[message]
    change(source, old, new)
    (source / "groups.json").write_text(text)
    if text == "no labels":
        with_labels(source, None)
    monkeypatch.setattr(links, "collected_ahead", lambda *_, **__: pytest.fail("a pass"))
    with pytest.raises(CondecError, match=message):
        list(chain(run_of(source)))


def test_all_that_is_wrong_is_told_at_once(source: Path) -> None:
    change(source, "maps = {", 'maps = {sites = "stem", ')
    change(source, "n_modes = 3", "n_modes = 30")
    with pytest.raises(OptionError) as caught:
        check_run(run_of(source))
    first, *lines = str(caught.value).splitlines()
    assert first == "3 things keep this run from being done:"
    assert "no result for stem" in lines[0]
    assert "block1: KMeans" in lines[1]
    assert "block2: KMeans" in lines[2]


def test_links_that_the_data_do_not_allow_are_left_out(source: Path) -> None:
    with_labels(source, np.arange(40))
    outcomes = carried_out(run_of(source))
    assert outcomes["control"].state == "left out"
    assert outcomes["control"].notes == ("no label has both training and held-out rows",)
    assert outcomes["report"].state == "made"
    noted = noted_in(source / "run")
    assert noted == ["control: no label has both training and held-out rows"]
    with_labels(source, np.arange(40) % 3)
    again = carried_out(run_of(source, out=source / "other"))
    assert again["control"].state == "made"
    assert noted_in(source / "other") is None


def test_an_output_that_is_no_row_of_labels_leaves_control_out(source: Path) -> None:
    net = NET.replace("small_resnet(labels=3)", "Twice()") + (
        "\nclass Twice(__import__('torch').nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.net = small_resnet(labels=3).eval()\n"
        "    def forward(self, x):\n        y = self.net(x)\n"
        "        return y[:, :, None] * y[:, None]\n"
    )
    (source / "net.py").write_text(net)
    change(source, 'sites = "block*"', 'sites = "net.block*"')
    change(source, 'control = {sites = "block2", ', "control = {")
    change(source, 'target = "predicted"', 'target = "logit:0,0"')
    change(source, "maps = {", 'maps = {target = "logit:0,0", ')
    left_out = check_run(run_of(source))
    assert left_out == {
        "control": "effects of edits need an output of shape [sample, label]; Twice gave (1, 3, 3) "
        "for 1 samples"
    }


def test_a_site_that_cannot_be_fitted_is_left_out(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = links.fit

    def fit(learner: KMeans, rows: object, **options: object) -> object:
        if "block1" in str(options["checkpoint"]):
            raise DataError("fit: the matrix is constant")
        return real(learner, rows, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(links, "fit", fit)
    outcomes = carried_out(run_of(source))
    assert outcomes["fit"].notes == ("fit block1: left out, fit: the matrix is constant",)
    assert {one.state for one in outcomes.values()} == {"made"}
    assert [path.parent.name for path in outcomes["map"].outputs] == ["block2"]
    noted = noted_in(source / "run")
    assert noted == ["fit block1: fit: the matrix is constant"]


def test_a_link_that_fails_is_told_after_the_report(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DataError("it is Friday")

    monkeypatch.setattr("condec.run.control.measure_curves", fail)
    run, seen = run_of(source), dict[str, Outcome]()
    config.write(run.plan)
    with pytest.raises(DataError, match="it is Friday"):
        seen.update((outcome.link, outcome) for outcome in chain(run))
    assert (seen["control"].state, seen["control"].notes) == ("failed", ("it is Friday",))
    assert seen["map"].state == seen["report"].state == "made"
    assert noted_in(source / "run") == ["control: it is Friday"]
    monkeypatch.setattr(links, "fit", fail)
    run, seen = run_of(source, out=source / "other"), {}
    config.write(run.plan)
    with pytest.raises(DataError, match="it is Friday"):
        seen.update((outcome.link, outcome) for outcome in chain(run))
    states = {link: outcome.state for link, outcome in seen.items()}
    assert states == {
        "collect": "made", "stats": "made", "fit": "failed", "control": "left out",
        "map": "left out", "explain": "left out", "report": "made",
    }  # fmt: skip


def test_sites_that_no_map_leads_to_are_left_out(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from condec.run import beforehand

    run, asked = run_of(source), list[str]()

    def refuse(run: Run, site: object) -> None:
        asked.append(str(site))
        raise CondecError("no forward-mode derivative")

    monkeypatch.setattr(beforehand, "one_map", refuse)
    assert check_run(run) == {"map": "no forward-mode derivative"}
    assert len(asked) == 2


def test_a_whole_store_is_checked_without_passes(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried_out(run_of(source, links=("collect",)))
    made = pytest.MonkeyPatch.setattr
    made(monkeypatch, "condec.store.batches.BatchPlan.make", lambda *_: pytest.fail("a pass"))
    assert check_run(run_of(source)) == {}
    with pytest.raises(StoreError, match="no contributions yet"):
        check_run(run_of(source, links=("fit",), out=source / "other"))


def test_what_is_checked_is_what_is_collected(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, made = BatchPlan.make, []
    monkeypatch.setattr(BatchPlan, "make", lambda *given: made.append(given) or plain(*given))
    run = run_of(source, links=("collect",))
    costs(run, check_run(run))
    assert carried_out(run)["collect"].state == "made"
    assert len(made) == 1
    assert carried_out(run_of(source, links=("collect",)))["collect"].state == "kept"


def test_labels_are_checked_again_once_bad_inputs_are_known(source: Path) -> None:
    torch.manual_seed(0)
    images = np.random.default_rng(0).random((40, 1, 6, 6)).astype(np.float32)
    labels = np.arange(40)
    labels[:2] = 0  # the only label with two rows; one of them cannot be used
    images[1] = np.nan
    np.savez(source / "data.npz", images=images, labels=labels)
    change(source, "shard_size = 16", 'shard_size = 16, on_bad = "skip"')
    outcomes = carried_out(run_of(source))
    assert outcomes["control"].notes == ("no label has both training and held-out rows",)
    assert outcomes["report"].state == "made"
