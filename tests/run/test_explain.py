"""Inputs of a run explained: the link, the pages, and what is refused."""

import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from condec.basis.errors import CondecError, DataError, OptionError, SiteError, StoreError
from condec.basis.npz import load_record
from condec.explanation import ExplainedInput, explain
from condec.explorer.session import Session
from condec.report import build_report, figures
from condec.report.reading import read_run
from condec.run import chain, config
from condec.run.explain import explain_inputs, modes_by
from condec.run.verify import repair_run, verify_run
from condec.store import RunFolder
from small_runs import hostile_source, run_of

EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "..",
    "{{ 7 * 7 }}",
    "x" * 300,
)
LINKS = ("collect", "fit", "explain")


class Tags(HTMLParser):
    """The tags of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = hostile_source(tmp_path_factory.mktemp("explained"), EVIL)
    run = run_of(folder, links=LINKS)
    config.write(run.plan)
    assert [outcome.state for outcome in chain(run)] == ["made"] * 3
    return folder


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "it")
    return tmp_path / "it"


def page_of(source: Path, text: object, **options: object) -> tuple[ExplainedInput, Path]:
    run = run_of(source)
    outcome = explain_inputs(run, [str(text)], **options)  # type: ignore[arg-type]
    file, page = outcome.outputs
    assert outcome.notes[-1].endswith(str(page / "index.html"))
    return load_record(file, ExplainedInput), page / "index.html"


def test_what_is_kept_is_what_explain_gives(source: Path) -> None:
    run = run_of(source)
    one, _ = page_of(source, "photo 7")
    row = run.inputs.ids.index("photo 7")
    found = explain(run.loaded.model, run.inputs.batch([row]), modes_by(run))
    assert (one.target, one.target_baseline) == (found.target, found.target_baseline)
    assert one.label == row % 3
    rows = found.to_frame()
    parts = [part for site in one.sites for part in site["parts"]]
    for key in ("part", "adds", "takes", "net"):
        assert [part[key] for part in parts] == rows[key].tolist()
    maps = [values for several in one.maps() for values in several]
    sums = torch.stack([values.sum() for values in maps]).double()
    whole = torch.tensor([0 if part["part"] == "quadrature" else part["net"] for part in parts])
    torch.testing.assert_close(sums, whole.double(), atol=1e-5, rtol=1e-4)
    fell = found.check().frame["part_removed"].tolist()
    assert [part["removed"] for part in parts if part["mode"] >= 0] == fell
    assert torch.equal(one.picture, run.inputs.picture(row))


def test_the_link_explains_typical_misclassified_and_outlying_inputs(source: Path) -> None:
    folder = RunFolder(source / "run")
    entries = [e for e in folder.ledger.entries.values() if e.link == "explain"]
    assert {e.made_from["why"] for e in entries} == {"typical", "misclassified", "outlying"}
    for entry in entries:
        one = load_record(
            folder.ledger.found(folder.explained(entry.made_from["input"])), ExplainedInput
        )
        assert (one.name, one.why) == (entry.made_from["input"], entry.made_from["why"])
        if one.why == "misclassified":
            assert one.label not in (-1, one.prediction)
    plan = config.read(source / "run.toml")
    ids = replace(plan.explain, inputs=("photo 9", "typical"))
    outcome = [*chain(run_of(source, links=LINKS, explain=ids))][-1]
    names = {e.made_from["input"] for e in RunFolder(source / "run").ledger.entries.values()
             if e.link == "explain"}  # fmt: skip
    assert outcome.state == "made"
    assert "photo 9" in names
    assert len(names) == 2
    assert len([*folder.analysis("explained").glob("*.npz")]) == 2  # those that went are removed
    again = [*chain(run_of(source, links=LINKS, explain=ids))][-1]
    assert again.state == "kept"


def test_pages_that_were_asked_for_stay_and_are_repaired(source: Path) -> None:
    _, page = page_of(source, "photo 8")
    run = run_of(source, links=LINKS)
    assert [*chain(run)][-1].state == "kept"
    assert page.is_file()
    assert not verify_run(source / "run").damages
    page.write_text("other")
    found = verify_run(source / "run")
    assert [damage.file for damage in found.damages] == [page.parent]
    assert [*repair_run(run_of(source, links=LINKS), found)]
    assert not verify_run(source / "run").damages


def test_an_input_of_the_plan_may_be_asked_for_as_well(source: Path) -> None:
    folder = RunFolder(source / "run")
    ids = replace(config.read(source / "run.toml").explain, inputs=("photo 9", "photo 8"))
    _, page = page_of(source, "photo 9", show=[2], sites=["block2"])
    for state in ("made", "kept"):  # the plan names it later
        assert [*chain(run_of(source, links=LINKS, explain=ids))][-1].state == state
        assert page.is_file()
    of_plan = folder.explained("photo 9").read_bytes()
    page_of(source, "photo 8", label="c")
    page_of(source, "photo 9")
    assert folder.explained("photo 9").read_bytes() == of_plan
    shown = read_run(source / "run").explained
    assert {name: shown[name] for name in ("photo 9", "photo 8")} == {
        name: folder.explained(name) for name in ("photo 9", "photo 8")
    }
    assert [*chain(run_of(source, links=LINKS))][-1].state == "made"  # the plan names others
    assert page.is_file()
    assert read_run(source / "run").explained["photo 8"] == folder.explained("photo 8", "asked")
    assert not verify_run(source / "run").damages


@pytest.mark.parametrize("name", EVIL)
def test_hostile_names_stay_text(source: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: path.touch())
    _, page = page_of(source, name)
    assert page.parent.parent == source / "run" / "explain"
    report = build_report(source / "run")
    for file in (page, *report.parent.rglob("*.html")):
        tags = Tags(file).found
        assert not [1 for tag, values in tags if tag == "script" and "src" not in values]
        assert not [1 for _, values in tags if values.get("src") == "x" or "onerror" in values]
        for tag, values in tags:
            link = values.get("href", values.get("src"))
            if tag in ("a", "img") and link and not link.startswith("#"):
                place = re.sub("%([0-9A-F]{2})", lambda m: chr(int(m[1], 16)), link.split("#")[0])
                assert (file.parent / place).exists(), link


def test_a_file_that_was_not_collected(source: Path) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (6, 6), dtype=np.uint8)
    Image.fromarray(pixels).save(source / "own.png")
    Image.fromarray(pixels).convert("RGBA").save(source / "coloured.png")
    np.save(source / "own.npy", pixels[None])
    pages = [page_of(source, source / name) for name in ("own.png", "coloured.png", "own.npy")]
    assert len({page for _, page in pages}) == 3
    first, *others = [one for one, _ in pages]
    for one in others:
        assert one.target == first.target
        assert torch.equal(one.places, first.places)
    assert first.name.startswith("own.png-")
    assert first.label == -1
    shutil.rmtree(source / "run" / "explain")
    (source / "data.npz").unlink()  # of a file, the data are not needed
    assert page_of(source, source / "own.npy", label="c")[0].label == 2


def test_modes_that_are_named_are_shown(source: Path) -> None:
    one, page = page_of(source, "photo 9", sites=["block2"], show=[2, 0])
    parts = [part["part"] for part in one.sites[0]["parts"]]
    assert parts[:2] == ["mode 2", "mode 0"]
    assert parts[-2:] == ["left over", "quadrature"]
    assert "block2" in page.read_text()


def test_a_page_elsewhere_leaves_the_run_as_it_is(source: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in (source / "run").rglob("*") if file.is_file()}
    outcome = explain_inputs(run_of(source), ["photo 9"], out=tmp_path / "page")
    assert outcome.outputs == (tmp_path / "page" / "index.html",)
    assert "../report" not in outcome.outputs[0].read_text()
    assert {f: f.read_bytes() for f in (source / "run").rglob("*") if f.is_file()} == before
    with pytest.raises(OptionError, match="holds other things than the page of an input"):
        explain_inputs(run_of(source), ["photo 9"], out=source)


REFUSED = [
    ("photo 77", {}, OptionError, "no input .*there is no file /.*; nearest ids: 'photo"),
    ("run.toml", {}, DataError, "run.toml: cannot be read as an image.*To explain an input give"),
    ("run", {}, DataError, "run: cannot be read as an image .*Name a file, not a folder, then"),
    ("words.txt", {}, DataError, "words.txt: cannot be read as an image"),
    ("large.png", {}, DataError, r"large.png' has shape \(1, 9, 9\); the model has"),
    ("many.npy", {}, DataError, r"many.npy: holds 3 inputs; save one by itself.*\]\. To explain"),
    ("a?b.png", {}, DataError, r"a name that holds '\?' names no source of data; rename it"),
    ("photo 9", {"sites": ["block9"]}, SiteError, "fits none of the sites; there are b"),
    ("photo 9", {"name": "nmf"}, OptionError, "no modes by 'nmf'; there are some by kmeans"),
    ("photo 9", {"show": [1]}, OptionError, "numbers belong to one site; name it, --site, of"),
    ("photo 9", {"sites": ["block2"], "show": [3]}, OptionError, "block2: there is no mode 3; the"),
    ("photo 9", {"label": "d"}, OptionError, "'d': no label of this run; numbers go from 0 to 2"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "error", "message"), REFUSED)
def test_what_is_refused(
    made: Path, name: str, options: dict[str, object], error: type[CondecError], message: str
) -> None:
    (made / "words.txt").write_text("Once upon a time")
    Image.new("L", (9, 9)).save(made / "large.png")
    Image.new("L", (6, 6)).save(made / "a?b.png")
    np.save(made / "many.npy", np.zeros((3, 6, 6), np.uint8))
    text = str(made / name) if (made / name).exists() else name
    before = sorted((made / "run").rglob("*"))
    with pytest.raises(error, match=message):
        explain_inputs(run_of(made), [text], **options)  # type: ignore[arg-type]
    assert sorted((made / "run").rglob("*")) == before


def test_a_run_that_lacks_something(source: Path) -> None:
    (source / "net.py").unlink()
    with pytest.raises(CondecError, match=r"net\.py"):
        page_of(source, "photo 9")
    shutil.rmtree(source / "run" / "modes")
    shutil.rmtree(source / "run" / "tasks")
    with pytest.raises(StoreError, match="no modes yet; run 'condec fit"):
        page_of(source, "photo 9")


def test_wrong_ids_of_a_plan_are_told_before_the_first_pass(source: Path) -> None:
    plan = config.read(source / "run.toml")
    wrong = replace(plan.explain, inputs=("photo 9", "photo 99"))
    with pytest.raises(OptionError, match="explain: inputs: 'photo 99' is no input of this run"):
        next(chain(run_of(source, links=LINKS, explain=wrong)))


def test_baselines_of_samples_are_taken_from_the_data_again(tmp_path: Path) -> None:
    source = hostile_source(tmp_path, EVIL)
    text = (source / "run.toml").read_text()
    (source / "run.toml").write_text(text.replace('"ig:2"', '"ig:2@samples:3"'))
    run = run_of(source, links=("collect", "fit", "map", "explain"))
    config.write(run.plan)
    assert [outcome.state for outcome in chain(run)] == ["made"] * 4
    method = run.plan.collect.method.fit(run.inputs)
    one, _ = page_of(source, "photo 7")
    x, modes = run.inputs.batch([7]), modes_by(run)
    found = explain(run.loaded.model, x, modes, method=method, label=one.label)
    assert one.change == pytest.approx(found.change)
    assert run.plan.collect.method.is_fitted is False
    assert method.is_fitted
    session = Session(run_of(source))
    assert session.explain("photo 7")["baseline"] == pytest.approx(found.target_baseline)
