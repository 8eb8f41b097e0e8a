"""run.toml to a plan and back; every wrong key and value has its message."""

import tomllib
from pathlib import Path

import jsonschema
import pytest

from condec.attribution import METHODS, ActGrad, IntegratedGradients
from condec.attribution.targets import Label, Logit, TopK
from condec.basis.errors import OptionError
from condec.dictionary import NMF, PCA, KMeans, MatryoshkaSAE, ThresholdSAE, TrainConfig
from condec.run import LINKS, config
from condec.run.plan import (
    LEARNERS,
    CollectPlan,
    ControlPlan,
    DataPlan,
    FitPlan,
    MapsPlan,
    ModelPlan,
    Plan,
)  # fmt: skip
from condec.store.twins import RandomWeights, ShuffledLabels

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FULL = """
sites = ["layer[1-3].*", "fc:input@features"]
out = "results"
links = ["collect", "fit"]

[model]
spec = "python:net.py:make"
weights = "w.safetensors"
input_shape = [3, 32, 32]
device = "cpu"

[data]
source = "folder:photos"
csv = "photos.csv"
superclasses = "groups.json"
preprocess = "python:net.py:preprocess"
limit = 20

[collect]
method = "actgrad"
target = "logit:285:softmax"
batch_size = 8
shard_size = 16
on_bad = "skip"
rows = "positions"
keep = 4
seed = 7
twins = ["random-weights:fc", "shuffled-labels#2"]

[fit]
learner = "nmf"
rows = "samples"
n_modes = 12
max_iter = 50
sign = "negative"
sites = ["layer3.*"]
held_out = 0.25
seed = 3
rivals = true
stability_seeds = 6
check_sites = "layer3.2"

[control]
sites = "layer3.2"
labels = [1, 2]
fractions = [0.1, 1]
edits = ["preserve"]
replacements = ["zero", "resample"]
rankings = ["modes", "mode_sum"]
off = "drawn"
n_random = 2
n_bootstrap = 50
seed = 1
batch_size = 32
matrix = true
steering = true
interactions = 4
share = 0.1
strengths = [1, 2]

[maps]
sites = ["layer3.2"]
n_modes = 2
n_units = 1
n_inputs = 3
target = "label:softmax"

[report]
title = "A test"
"""


def parsed(text: str) -> Plan:
    return config.from_dict(tomllib.loads(text), folder="/somewhere")


def test_every_key_arrives_as_an_object() -> None:
    plan = parsed(FULL)
    assert plan.sites == ("layer[1-3].*", "fc:input@features")
    assert plan.out == Path("/somewhere/results")
    assert plan.base == Path("/somewhere")
    assert plan.links == ("collect", "fit")
    assert plan.model == ModelPlan(
        spec="python:net.py:make", weights="w.safetensors", input_shape=(3, 32, 32), device="cpu"
    )
    assert plan.data == DataPlan(
        source="folder:photos", csv="photos.csv", superclasses="groups.json",
        preprocess="python:net.py:preprocess", limit=20,
    )  # fmt: skip
    assert plan.collect == CollectPlan(
        method=ActGrad(), target=Logit(285, probability=True), batch_size=8, shard_size=16,
        on_bad="skip", twins=(RandomWeights(from_module="fc"), ShuffledLabels(seed=2)),
        rows="positions", keep=4, seed=7,
    )  # fmt: skip
    assert plan.fit == FitPlan(
        learner=NMF(n_modes=12, max_iter=50), train=TrainConfig(held_out=0.25, seed=3),
        sign="negative", rows="samples", sites=("layer3.*",), rivals=True, stability_seeds=6,
        check_sites=("layer3.2",),
    )  # fmt: skip
    assert (plan.fit.name, plan.fit.modes_per_unit) == ("nmf", None)
    assert plan.control == ControlPlan(
        sites=("layer3.2",), labels=(1, 2), fractions=(0.1, 1.0), edits=("preserve",),
        replacements=("zero", "resample"), rankings=("modes", "mode_sum"), off="drawn",
        n_random=2, n_bootstrap=50, seed=1, batch_size=32, matrix=True, steering=True,
        interactions=4, share=0.1, strengths=(1.0, 2.0),
    )  # fmt: skip
    assert isinstance(plan.control.fractions[1], float)
    assert plan.maps == MapsPlan(
        sites=("layer3.2",), n_modes=2, n_units=1, n_inputs=3, target=Label(probability=True)
    )
    assert plan.report.title == "A test"


@pytest.mark.parametrize("text", [FULL, "sites = 'block*'", "sites = 'a'\n[fit]\nlearner = 'pca'"])
def test_round_trip(text: str) -> None:
    plan = parsed(text)
    again = config.from_dict(config.to_dict(plan, folder="/somewhere"), folder="/somewhere")
    assert (again.out.resolve(), again.base.resolve()) == (plan.out, plan.base)
    for part in ("sites", "links", "model", "data", "collect", "fit", "control", "maps", "report"):
        assert getattr(again, part) == getattr(plan, part), part


def test_fits_take_the_rows_that_are_collected() -> None:
    positions = {"sites": "a", "collect": {"rows": "positions"}}
    records = {"sites": "a"}, positions, positions | {"fit": {"rows": "samples"}}
    plans = [config.from_dict(record) for record in records]
    assert [plan.rows for plan in plans] == ["samples", "positions", "samples"]
    assert "rows" not in config.to_dict(plans[1])["fit"]


def test_absent_keys_keep_their_defaults() -> None:
    plan = config.from_dict({"sites": "block*"})
    assert plan.links == LINKS
    assert plan.collect.method == IntegratedGradients(steps=10, spacing="fitted")
    assert plan.collect.target == TopK(k=1)
    sae = ThresholdSAE(n_modes=1)
    assert plan.fit == FitPlan(learner=sae, modes_per_unit=3.0, rows_per_mode=4.0)
    assert plan.out == Path("run")
    assert plan == Plan(out=Path("run"), base=Path(), sites=("block*",))


def test_written_run_folder_moves_with_its_sources(tmp_path: Path) -> None:
    source = tmp_path / "a" / "run.toml"
    source.parent.mkdir()
    source.write_text(FULL)
    plan = config.read(source)
    written = config.write(plan)
    assert written == tmp_path / "a" / "results" / "run.toml"
    assert str(tmp_path) not in written.read_text()
    (tmp_path / "a").rename(tmp_path / "b")
    moved = config.read(tmp_path / "b" / "results")
    assert moved.base.resolve() == tmp_path / "b"
    assert moved.out.resolve() == tmp_path / "b" / "results"
    assert moved.fit == plan.fit
    assert [file.name for file in moved.out.iterdir()] == ["run.toml"]


def test_the_same_plan_is_written_with_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(FULL)
    first = config.write(config.read(tmp_path / "run.toml")).read_bytes()
    assert config.write(config.read(tmp_path / "results")).read_bytes() == first


@pytest.mark.parametrize("text", ["ig", "ig:25", "actgrad", "ig:auto:layer@blur:2", "gradcam"])
def test_methods_are_those_of_their_own_texts(text: str) -> None:
    plan = config.from_dict({"sites": "x", "collect": {"method": text}})
    assert plan.collect.method == METHODS.parse(text)
    again = config.from_dict(config.to_dict(plan))
    assert again.collect.method == plan.collect.method


def test_methods_that_do_not_exist() -> None:
    with pytest.raises(OptionError, match=r"method 'ig:ten': expected ig\[:STEPS"):
        config.from_dict({"sites": "x", "collect": {"method": "ig:ten"}})


def test_number_of_modes_follows_the_units_of_a_site() -> None:
    plan = config.from_dict({"sites": "a", "fit": {"n_modes": "2.5x", "threshold": 0.8}}).fit
    assert plan.learner_for(64, 10) == ThresholdSAE(n_modes=160, threshold=0.8)
    assert plan.learner_for(1, 10).n_modes == 2
    fixed = config.from_dict({"sites": "a", "fit": {"learner": "kmeans", "n_modes": 7}}).fit
    assert fixed.learner_for(64, 10) == KMeans(n_modes=7)
    every = config.from_dict({"sites": "a", "fit": {"learner": "pca"}}).fit
    assert every.learner_for(9, 1000) == PCA(n_modes=9)


@pytest.mark.parametrize(
    ("fit", "n_rows", "n_modes"),
    [
        ({}, 50_000, 1536),  # the paper's three times the units
        ({}, 120, 24),  # 96 training rows, 4 for each mode
        ({"held_out": 0.5}, 120, 15),
        ({"n_modes": "2x, rows/10"}, 1000, 80),
        ({"n_modes": "2x,rows/0.5"}, 1000, 1024),
        ({"n_modes": "3x"}, 120, 1536),  # what is asked for is done
        ({"learner": "nmf"}, 1000, 200),
        ({"learner": "topk"}, 20, 8),  # its k codes of a row
        ({}, 3, 1),
    ],
)
def test_default_number_of_modes_follows_the_rows_too(fit, n_rows, n_modes) -> None:
    plan = config.from_dict({"sites": "a", "fit": fit})
    assert plan.fit.learner_for(512, n_rows).n_modes == n_modes
    assert config.from_dict(config.to_dict(plan)).fit == plan.fit


@pytest.mark.parametrize(
    ("n_modes", "message"),
    [
        ("3 units", "such as '3x', or that and a limit by the training rows, such as '3x, rows/4'"),
        ("rows/4", "expected a number, a multiple"),
        ("3x, rows/0", "n_modes must be above 0; got rows/0"),
        ("0x", "n_modes must be above 0; got 0x"),
    ],
)
def test_numbers_of_modes_that_cannot_be(n_modes, message) -> None:
    with pytest.raises(OptionError, match=message):
        config.from_dict({"sites": "a", "fit": {"n_modes": n_modes}})
    with pytest.raises(OptionError, match="rows_per_mode goes with modes_per_unit"):
        FitPlan(learner=ThresholdSAE(n_modes=1), rows_per_mode=4.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("site = 'a'", "there is no key 'site'; nearest: 'sites'"),
        ("[colect]\n", "there is no key 'colect'; nearest: 'collect'"),
        (
            "[collect]\nbatchsize = 3",
            r"\[collect\] has no key 'batchsize'; nearest: 'batch_size'. Keys: method, target",
        ),
        ("[fit]\ntreshold = 0.5", r"\[fit\] has no key 'treshold'; .*'threshold'"),
        (
            "[fit]\nlearner = 'pca'\nthreshold = 0.5\ndropout = 0.1",
            r"\[fit\] threshold, dropout: of another learner than pca; remove these keys",
        ),
        ("[fit]\nlearner = 'lda'", "learner: expected one of sae, nmf, pca, kmeans, relu"),
        ("[fit]\nn_modes = 'many'", "n_modes: expected a number, a multiple"),
        ("[fit]\nn_modes = '0x'", "n_modes must be above 0; got 0x"),
        ("[fit]\nn_modes = true", "n_modes: expected a number"),
        ("[fit]\nn_modes = 0", "n_modes must be .*at least 1"),
        ("[fit]\nheld_out = 2.0", "held_out must be"),
        ("[fit]\nstability_seeds = 4", "stability_seeds must be at least 5; got 4"),
        (
            "[fit]\nrivals = true\nheld_out = 0.0",
            "rivals are compared on held-out rows; held_out must be above 0",
        ),
        ("[fit]\nsign = 'up'", "fit: sign: expected one of positive, negative"),
        ("sites = 'a'\nfit = 3", r"fit: expected a table \[fit\]; got 3"),
        ("sites = 'a'\nmodel = 'digits'", r"model: expected a table \[model\]; got 'digits'"),
        ("[model]\nspec = 3", "model: spec: expected text; got 3"),
        ("[model]\ninput_shape = [3, 0]", "input_shape must be at least 1; got 0"),
        ("[collect]\nbatch_size = '64'", "batch_size: expected a whole number; got '64'"),
        ("[collect]\nbatch_size = 6.5", "batch_size: expected a whole number"),
        ("[collect]\nbatch_size = true", "batch_size: expected a whole number"),
        ("[collect]\nbatch_size = 0", "batch_size must be at least 1; got 0"),
        ("[collect]\nbatch_size = 'big'", "batch_size: expected a whole number"),
        ("[collect]\nprecision = 'half'", "precision: expected one of model, bfloat"),
        ("[collect]\non_bad = 'ignore'", "on_bad: expected one of raise, skip"),
        ("[collect]\nrows = 'places'", "rows: expected one of samples, positions; got 'places'"),
        ("[collect]\nkeep = 0", "collect: keep must be at least 1; got 0"),
        ("[fit]\nrows = 'places'", "fit: rows: expected one of samples, positions"),
        ("[fit]\nrows = 'positions'", r"of which \[collect\] keeps none; set \[collect\] rows"),
        ("[collect]\ntarget = 'best'", "target 'best': expected topK"),
        ("[collect]\nmethod = 10", "collect: method: expected text; got 10"),
        ("[control]\nedits = ['delete']", "edits: expected one of ablate, preserve"),
        ("[control]\nedits = []", "control: edits: none given"),
        ("[control]\nrankings = []", "control: rankings: none given"),
        (
            "[control]\nrankings = ['best']",
            "control: rankings must be one of log_odds_modes, log_odds_difference, modes",
        ),
        ("[control]\nlog_odds = 'exact'", "control: log_odds: method 'exact': expected ig"),
        ("[control]\noff = 'all'", "control: off: expected one of others, drawn"),
        (
            "[control]\nreplacements = ['noise']",
            "replacements: expected one of zero, mean, class_mean, resample",
        ),
        ("[control]\nn_bootstrap = -1", "control: n_bootstrap must be at least 0"),
        (
            "[control]\nrankings = ['random']\nn_random = 0",
            "control: n_random is 0, and rankings has nothing else to compare",
        ),
        ("[control]\nshare = 1", "control: share must lie between 0 and 1; got 1.0"),
        ("[control]\nstrengths = [2, 1]", "control: strengths: expected some in asc"),
        ("[control]\nstrengths = []", "control: strengths: expected some in ascend"),
        ("[control]\ninteractions = -1", "interactions must be at least 0; got -1"),
        (
            "[control]\ninteractions = 1\nn_bootstrap = 0",
            "control: n_bootstrap must be at least 1; got 0",
        ),
        ("[control]\nsteering = true\nn_random = 0", "control: n_random must be at least 1; got 0"),
        ("[control]\nfractions = [2]", "fractions lie between 0 and 1"),
        ("[control]\nfractions = ['all']", "fractions: expected a number; got 'all'"),
        ("[engine]\nworkers = 8", "workers are those of an engine, kind local or ray"),
        ("[maps]\nn_units = 0", "maps: n_units must be at least 1; got 0"),
        ("[maps]\nn_inputs = 128", "a page shows at most 100 inputs of a mode; got 128"),
        ("sites = 'a'\nlinks = ['fly']", "links: expected one of collect, stats, fit"),
        ("sites = 'a'\nlinks = []", "links: none given"),
        ("sites = []", "sites: none given"),
        ("out = 'x'", "sites: none given"),
        ("sites = 3", "sites: expected text; got 3"),
        ("sites = [3]", "sites: expected text; got 3"),
        ("sites = 'a'\nout = 3", "out: expected text; got 3"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_messages(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(f"sites = 'a'\n{text}" if text[0] == "[" else text)
    with pytest.raises(OptionError, match=f"run.toml: .*{message}"):
        config.read(tmp_path / "run.toml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"gone.toml: not readable \(No such file"):
        config.read(tmp_path / "gone.toml")
    with pytest.raises(OptionError, match=r"not readable .*expected a run.toml or a folder"):
        config.read(tmp_path)
    (tmp_path / "run.toml").write_text("sites = ")
    with pytest.raises(OptionError, match=r"run.toml: not TOML"):
        config.read(tmp_path / "run.toml")


def test_the_demo_is_a_plan() -> None:
    plan = config.from_dict(config.DEMO)
    assert plan.model.spec == plan.data.source == "digits"
    assert plan.links == LINKS


def test_a_text_of_no_twin_is_refused() -> None:
    with pytest.raises(OptionError, match=r"twin 'random': expected random-weights.*\[#SEED\]"):
        parsed("sites = 'a'\n[collect]\ntwins = ['shuffled-labels', 'random']")


def test_a_twin_twice_is_refused() -> None:
    with pytest.raises(OptionError, match=r"twins: each once; got shuffled-labels, shuffled"):
        parsed("sites = 'a'\n[collect]\ntwins = ['shuffled-labels', 'shuffled-labels#0']")


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_can_be_planned(name):
    plan = config.from_dict({"sites": "a", "fit": {"learner": name}})
    assert type(plan.fit.learner) is LEARNERS[name]
    assert plan.fit.learner_for(10, 1000).n_modes == (30 if name == "sae" else 10)
    again = config.from_dict(config.to_dict(plan))
    assert again.fit == plan.fit


def test_options_of_sparse_learners():
    options = {"learner": "matryoshka", "k": 4, "prefixes": [0.5, 1.0], "scaling": "unit"}
    fit = config.from_dict({"sites": "a", "fit": {**options, "centre": True, "clip": 1.0}}).fit
    assert fit.learner_for(16, 1000) == MatryoshkaSAE(16, k=4, prefixes=(0.5, 1.0))
    assert fit.train == TrainConfig(scaling="unit", centre=True, clip=1.0)


def test_attributes_of_options_are_no_keys():
    with pytest.raises(OptionError, match=r"\[fit\] has no key 'freezes'; nearest: 'freeze'"):
        config.from_dict({"sites": "a", "fit": {"freezes": True}})


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("**/*run.toml")), ids=str)
def test_the_schema_takes_the_examples_and_no_typo(file: Path) -> None:
    validator = jsonschema.Draft202012Validator(config.schema())
    record = tomllib.loads(file.read_text())
    assert not list(validator.iter_errors(record))
    for section, key in (("collect", "batchsize"), ("fit", "tresh"), ("data", "sorce")):
        typo = record | {section: record.get(section, {}) | {key: 3}}
        assert list(validator.iter_errors(typo)), key
    assert list(validator.iter_errors({"site": "a"}))


def test_the_schema_takes_what_a_plan_writes() -> None:
    validator = jsonschema.Draft202012Validator(config.schema())
    for plan in (config.from_dict(config.DEMO), parsed(FULL)):
        assert not list(validator.iter_errors(config.to_dict(plan)))
    assert list(validator.iter_errors({"sites": "a", "fit": {"learner": "pca", "threshold": 1}}))


def test_inputs_to_explain_are_kinds_or_ids() -> None:
    def inputs(given: object) -> tuple[str, ...]:
        return config.from_dict({"sites": "a", "explain": {"inputs": given}}).explain.inputs

    assert inputs("typical, outlying") == ("typical", "outlying")
    assert inputs("a, b.jpg") == ("a, b.jpg",)
    assert inputs(["typical", "b.jpg"]) == ("typical", "b.jpg")
    with pytest.raises(OptionError, match=r"explain: inputs: none given; .* out of links"):
        inputs([])
    with pytest.raises(OptionError, match="n_inputs must be at least 1; got 0"):
        config.from_dict({"sites": "a", "explain": {"n_inputs": 0}})
    validator = jsonschema.Draft202012Validator(config.schema())
    assert not list(validator.iter_errors({"sites": "a", "explain": {"inputs": ["b.jpg"]}}))
    assert list(validator.iter_errors({"sites": "a", "explain": {"inputs": 3}}))


def test_a_run_folder_is_opened_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(FULL)
    run = config.write(config.read(tmp_path / "run.toml")).parent
    text = (run / "run.toml").read_text()
    assert 'out = "."' in text
    for out in ("../victim", str(tmp_path / "victim"), "x/../../victim"):
        (run / "run.toml").write_text(text.replace('out = "."', f'out = "{out}"'))
        for named in (run, run / "run.toml"):
            with pytest.warns(UserWarning, match="opened where it lies; out = .* is ignored"):
                plan = config.read(named)
            assert (plan.out, plan.of_folder) == (run, True)
    # A copy that the user made of it, under another name, is a plan of the user's.
    mine = run.parent / "mine.toml"
    mine.write_text(text.replace('out = "."', 'out = "other"'))
    assert (config.read(mine).out, config.read(mine).of_folder) == (tmp_path / "other", False)


def test_a_named_folder_with_a_plan_by_hand_is_not_left(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.toml").write_text('sites = "*"\nout = "../b"\n')
    with pytest.raises(OptionError, match=r"out: .*leads out of the folder .* name the file itsel"):
        config.read(tmp_path / "a")
    assert config.read(tmp_path / "a" / "run.toml").out == tmp_path / "a" / "../b"
    (tmp_path / "a" / "run.toml").write_text('sites = "*"\n')
    assert config.read(tmp_path / "a").out == tmp_path / "a" / "run"
    assert config.read(tmp_path / "a").of_folder
    assert not config.read(tmp_path / "a" / "run.toml").of_folder
