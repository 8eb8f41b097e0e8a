"""Questions to a session: answers are those of the library, and of plain loops."""

import copy
import io
import json
import tomllib
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import condec
from condec.basis.errors import DataError, ModelError, OptionError, StoreError
from condec.explorer.jobs import Job
from condec.explorer.session import N_MODES, Session, _refitted
from condec.modes import annotate
from condec.run import Run, chain, config
from condec.run.explain import modes_by
from small_runs import write_source


def test_an_answer_is_what_explain_says(session):
    answer = session.explain("photo 7")
    run = session.run
    x = run.inputs.batch([7])
    found = condec.explain(run.loaded.model, x, modes_by(run), n_modes=N_MODES)
    assert answer["target"] == pytest.approx(found.target)
    assert answer["baseline"] == pytest.approx(found.target_baseline)
    for site, at in zip(answer["sites"], found.by_site, strict=True):
        assert [part["name"] for part in site["parts"]] == [part.name for part in at.parts]
        for part, own in zip(site["parts"], at.parts, strict=True):
            assert (part["adds"], part["takes"]) == pytest.approx((own.adds, own.takes))
            assert np.prod(part["shape"]) == len(part["places"])
            assert sum(part["places"]) + part["beside"] == pytest.approx(own.net, abs=1e-2)
    values = run.loaded.model(x)[0]
    assert [row[1] for row in answer["outputs"]] == pytest.approx(sorted(values.tolist())[::-1])
    assert all(was == now for _, was, now in answer["outputs"])
    assert answer["prediction"] == answer["outputs"][0][0]


def test_turned_modes_give_what_a_hook_gives(session):
    answer = session.explain("photo 9")
    model, x = session.run.loaded.model, session.run.inputs.batch([9])
    found = condec.explain(model, x, modes_by(session.run), n_modes=N_MODES)
    at = found.by_site[0]
    first, second = at.parts[0], at.parts[1]
    factors = {first.name: 0.0, second.name: 2.5}
    site = at.site.key
    start = {}
    with torch.no_grad():
        module = model.get_submodule(at.site.name)
        hook = module.register_forward_hook(lambda m, a, out: start.update(h=out.clone()))
        model(torch.zeros_like(x))
        hook.remove()

        def change(module, args, out):
            more = out.clone()
            for place in np.ndindex(*out.shape[1:]):
                h, h0 = out[(0, *place)], start["h"][(0, *place)]
                away = 1.0 * first.weights[place] - 1.5 * second.weights[place]
                more[(0, *place)] = h - away * (h - h0)
            return more

        hook = module.register_forward_hook(change)
        expected = model(x)[0]
        hook.remove()
        plain = model(x)[0]
    turned = session.turn(answer["key"], site, factors)
    by_label = {row[0]: row for row in turned["outputs"]}
    for number, (was, now) in enumerate(zip(plain.tolist(), expected.tolist(), strict=True)):
        label = session._label(number)
        assert by_label[label][1:] == pytest.approx([was, now], rel=1e-5, abs=1e-6)
    assert torch.allclose(found.turned(site, factors)[0], expected, rtol=1e-5, atol=1e-6)
    again = session.turn(answer["key"], site, {})
    assert [row[2] for row in again["outputs"]] == pytest.approx([r[1] for r in again["outputs"]])


def test_a_part_that_is_turned_off_falls_as_check_says(session):
    found = condec.explain(
        session.run.loaded.model, session.run.inputs.batch([3]), modes_by(session.run)
    )
    row = found.check().frame.iloc[0]
    now = found.turned(row["site"], {row["part"]: 0.0})[0, found.prediction]
    assert found.target - float(now) == pytest.approx(row["part_removed"], abs=1e-5)


def test_what_cannot_be_turned_is_refused(session):
    key, site = (answer := session.explain("photo 7"))["key"], answer["sites"][0]["key"]
    with pytest.raises(OptionError, match="no part 'mode 99'; there are"):
        session.turn(key, site, {"mode 99": 0.0})
    with pytest.raises(OptionError, match="no part '-1'"):
        session.turn(key, site, {"-1": 0.0})
    part = answer["sites"][0]["parts"][0]["name"]
    with pytest.raises(OptionError, match=f"{part} is named twice"):
        session.turn(key, site, {part: 0.0, part.removeprefix("mode "): 0.0})
    with pytest.raises(OptionError, match="expected a number; got inf"):
        session.turn(key, site, {answer["sites"][0]["parts"][0]["name"]: float("inf")})
    with pytest.raises(OptionError, match="no longer kept; ask for the input again"):
        session.turn("another", site, {})
    with pytest.raises(DataError, match="there is no input 'photo 99'"):
        session.explain("photo 99")


def test_few_explanations_are_kept(session):
    keys = [session.explain(f"photo {row}")["key"] for row in range(3, 14)]
    assert len(session._kept) == 8
    with pytest.raises(OptionError, match="no longer kept"):
        session.page(keys[0])


def test_an_upload_is_explained_as_the_same_file_on_the_disk(session):
    pixels = session.run.inputs.picture(5).numpy()
    content = io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(content, "PNG")
    array = io.BytesIO()
    np.save(array, session.run.inputs.load(5)[None].numpy())
    collected = session.explain("photo 5")
    answer = session.explain_upload(array.getvalue())
    assert answer["target"] == pytest.approx(collected["target"])
    assert answer["outputs"] == [
        [n, pytest.approx(a), pytest.approx(b)] for n, a, b in collected["outputs"]
    ]
    assert session.explain_upload(content.getvalue())["picture"].startswith("data:image/png")


def test_inputs_that_the_report_explains_come_first(session):
    offered = session.offered()
    whys = [one["why"] for one in offered]
    assert whys[0]
    assert "" in whys
    assert whys == sorted(whys, key=lambda why: why == "")
    assert len({one["id"] for one in offered}) == len(offered)
    assert Image.open(io.BytesIO(session.thumbnail(offered[0]["id"]))).size == (6, 6)


def test_a_page_is_whole(session):
    key = session.explain("photo 7")["key"]
    with zipfile.ZipFile(io.BytesIO(session.page(key))) as packed:
        assert {"index.html", "assets/report.css"} <= set(packed.namelist())
        assert "photo 7" in packed.read("index.html").decode()


def test_a_run_without_modes_is_refused(session, tmp_path: Path):
    plan = replace(session.run.plan, out=tmp_path / "none")
    with pytest.raises(StoreError, match="no contributions yet"):
        Session(Run(plan, progress=False))


def test_what_is_not_known_is_none_and_warnings_are_told(session, monkeypatch: pytest.MonkeyPatch):
    explain = session._explain

    def without_baseline(x, label):
        warnings.warn("explain: shares are undefined", UserWarning, stacklevel=1)
        return replace(explain(x, label), target_baseline=float("nan"))

    monkeypatch.setattr(session, "_explain", without_baseline)
    answer = session.explain("photo 7")
    assert answer["baseline"] is None
    assert answer["warnings"] == ["explain: shares are undefined"]
    json.dumps(answer, allow_nan=False)


def test_weights_do_what_sliders_do_or_are_refused(tmp_path: Path):
    plan = config.read(write_source(tmp_path) / "run.toml")
    plan = replace(plan, sites=("stem", "head"), links=("collect", "fit"))
    assert [one.state for one in chain(Run(plan, progress=False))] == ["made"] * 2
    session = Session(Run(plan, progress=False))
    answer = session.explain("7")
    key = answer["key"]
    part = answer["sites"][1]["parts"][0]["name"]
    content = session.weights(key, "head", {part: 0.0})
    wanted = session.turn(key, "head", {part: 0.0})
    model, x = session.run.loaded.model, session.run.inputs.batch([7])
    before = model(x)
    made = copy.deepcopy(model).requires_grad_(False)
    made.load_state_dict(safetensors.torch.load(content))
    by_label = {row[0]: row[2] for row in wanted["outputs"]}
    for number, value in enumerate(made(x)[0].tolist()):
        assert value == pytest.approx(by_label[session._label(number)], abs=1e-5)
    assert (made(x) - before).abs().max() > 1e-3
    assert torch.equal(model(x), before)
    (tmp_path / "it.safetensors").write_bytes(content)
    with safetensors.safe_open(tmp_path / "it.safetensors", "pt") as opened:
        said = opened.metadata()
    assert (said["site"], said["input"]) == ("head", "7")
    assert float(said["with sliders"]) == pytest.approx(wanted["target"], rel=1e-4)
    # As it is of a model whose weights lie in another order, which safetensors does not take.
    model.to(memory_format=torch.channels_last)
    assert not all(value.is_contiguous() for value in model.state_dict().values())
    again = safetensors.torch.load(session.weights(key, "head", {part: 0.0}))
    assert again.keys() == made.state_dict().keys()
    assert all(torch.equal(again[name], value) for name, value in made.state_dict().items())
    # Units of a convolution have another share at each place.
    parts = answer["sites"][0]["parts"]
    with pytest.raises(ModelError, match="they change a unit alike at all places and inputs"):
        session.weights(key, "stem", {parts[0]["name"]: 0.0})
    with pytest.raises(OptionError, match="no slider of this site is turned"):
        session.weights(key, "head", {part: 1.0})


def test_modes_have_the_names_that_people_gave_them(session):
    part = session.explain("photo 7")["sites"][0]["parts"][0]
    assert part["called"] == ""
    modes = session.modes[0]
    row = modes.row(int(part["name"].removeprefix("mode ")))
    annotate(session.run.folder.path, modes, row, name="<b>violin")
    try:
        site = session.explain("photo 7")["sites"][0]
        assert [one["called"] for one in site["parts"]].count("<b>violin") == 1
        assert site["parts"][0]["called"] == "<b>violin"
    finally:
        (session.run.folder.path / "names.json").unlink()


def test_an_upload_without_a_label_gets_the_predicted_one_where_the_target_needs_one(
    tmp_path: Path,
):
    plan = config.read(write_source(tmp_path) / "run.toml")
    collecting = replace(plan.collect, target=condec.Label())
    plan = replace(plan, sites=("block2",), links=("collect", "fit"), collect=collecting)
    assert [one.state for one in chain(Run(plan, progress=False))] == ["made"] * 2
    session = Session(Run(plan, progress=False))
    array = io.BytesIO()
    np.save(array, session.run.inputs.load(5)[None].numpy())
    answer = session.explain_upload(array.getvalue())
    label = int(session.run.loaded.model(session.run.inputs.batch([5])).argmax())
    said = f"It came without a label, which the target needs: {session._label(label)} is taken"
    assert answer["warnings"][0].startswith(said)
    assert answer["label"] == ""
    assert answer["target"] == pytest.approx(answer["outputs"][0][1])
    with zipfile.ZipFile(io.BytesIO(session.page(answer["key"]))) as packed:
        page = packed.read("index.html").decode()
    assert "it came without a label: the predicted one is taken as its label" in page
    assert f"its label is {session._label(label)}" in page
    own = session.explain("5")
    with zipfile.ZipFile(io.BytesIO(session.page(own["key"]))) as packed:
        assert "without a label" not in packed.read("index.html").decode()
    assert own["warnings"] == []
    assert own["label"] == session._label(5 % 3)


def test_thumbnails_are_kept(session, monkeypatch: pytest.MonkeyPatch):
    first = session.thumbnail("photo 11")
    monkeypatch.setattr(type(session.run.inputs), "picture", None)
    assert session.thumbnail("photo 11") is first


def test_modes_of_another_dictionary_are_refused(session):
    site = session.explain("photo 7")["sites"][0]
    modes = next(modes for modes in session.modes if modes.site.key == site["key"])
    assert site["dictionary"] == modes.dictionary != ""
    one = [site["key"], int(modes.ids[0]), modes.dictionary]
    assert f'dictionary = "{modes.dictionary}"' in session.selection([one])
    assert session.curves(*one) == []
    for ask in (session.selection, lambda some: session.start("control", {"modes": some})):
        with pytest.raises(
            OptionError, match=r"fitted again since mode .* explain the input again"
        ):
            ask([[*one[:2], "of another"]])
        with pytest.raises(OptionError, match=r"expected \[site, mode, dictionary\] each"):
            ask([one[:2]])
    assert session.jobs.told() == []


@pytest.mark.parametrize("mode", [float("nan"), float("inf"), 0.7, True, 1e300, "1", None])
def test_what_is_no_number_of_a_mode_is_refused(session, mode):
    modes = session.modes[0]
    with pytest.raises(OptionError, match="selection: mode: expected a number; got"):
        session.selection([[modes.site.key, mode, modes.dictionary]])


def test_a_job_behind_a_fit_has_the_plan_of_that_fit(session, monkeypatch: pytest.MonkeyPatch):
    given = []

    def add(words, command, files, done, undone):
        given.append((files, done))
        return Job(len(given), words, command, files, done, undone)

    monkeypatch.setattr(session.jobs, "add", add)
    before = session.plan
    monkeypatch.setattr(session, "plan", before)
    session.start("fit", {"learner": "nmf", "n_modes": "2"})
    session.start("report", {})
    (fit, fitted), (report, made) = given
    assert tomllib.loads(fit()["plan.toml"])["fit"]["learner"] == "nmf"
    assert tomllib.loads(report()["plan.toml"])["fit"]["learner"] == "kmeans"
    fitted()
    made()
    plan = tomllib.loads(report()["plan.toml"])
    assert (plan["fit"]["learner"], plan["fit"]["n_modes"]) == ("nmf", 2)
    assert session.run.plan is before  # until the next question


def test_a_fit_that_is_cancelled_leaves_the_plan_as_it_was(session, monkeypatch, tmp_path: Path):
    given = []

    def add(words, command, files, done, undone):
        given.append((files, undone))
        return Job(1, words, command, files, done, undone)

    monkeypatch.setattr(session.jobs, "add", add)
    monkeypatch.setattr(session, "plan", replace(session.plan, out=tmp_path / "run"))
    config.write(session.plan)
    before = (tmp_path / "run" / "run.toml").read_text()
    session.start("fit", {"learner": "nmf", "n_modes": "2"})
    ((files, undone),) = given
    (tmp_path / "plan.toml").write_text(files()["plan.toml"])
    config.write(config.read(tmp_path / "plan.toml"))  # as the command does when it begins
    assert 'learner = "nmf"' in (tmp_path / "run" / "run.toml").read_text()
    undone()
    assert (tmp_path / "run" / "run.toml").read_text() == before
    other = _refitted(session.plan, {"n_modes": "7"})  # as another command noted meanwhile
    noted = config.write(other).read_text()
    undone()
    assert (tmp_path / "run" / "run.toml").read_text() == noted


def test_a_fit_that_cannot_be_taken_up_is_not_forgotten(session, monkeypatch: pytest.MonkeyPatch):
    before, n_opened = session.run, []

    def broken(run):
        n_opened.append(1)
        raise StoreError("damaged")

    monkeypatch.setattr(session, "_open", broken)
    monkeypatch.setattr(session, "plan", replace(session.plan))
    for _ in range(2):
        with pytest.raises(StoreError, match="damaged"):
            session.refresh()
    assert len(n_opened) == 2
    assert session.run is before
