"""Texts of all kinds, mutated: whatever they say, only condec's own errors come out.

Valid texts are cut, doubled, spliced and sprinkled with what parsers fear; seeded, so that a number
finds its text again. ``pytest tests/faults/test_fuzz.py -m slow -s`` tries a million of them in all
and prints how many of each parser were refused; `make test` tries some thousand.
"""

# ruff: noqa: PT017, ISC004

import io
import json
import random
import re
import resource
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from condec.attribution.targets.texts import TARGETS, target_from_dict
from condec.attribution.texts import BASELINES, METHODS, method_from_dict
from condec.basis import registry
from condec.basis.errors import CondecError, OptionError
from condec.cli.inspection import shape_of
from condec.data import load_data, read_names
from condec.models import FAMILIES
from condec.models.python import load_function
from condec.modes import Hierarchy
from condec.network import Site, find_site, find_sites, match_sites
from condec.run import config, sweep
from condec.store import TWINS
from condec.testing.models import small_resnet

pytestmark = pytest.mark.usefixtures("unchecked")  # as users have it
IN_ALL = 1_000_000
QUICK = 4_000
NASTY = (
    "", " ", "\n", "\0", "\t", ",", ":", ";", "#", "@", "[", "]", "[z-a]", "[!]", "[^", "[[:a:]]",
    "[a--b]", "(", ")", "{", "}", "*", "**", "***", "?", "\\", "/", "..", "~", "~nobody/", "-",
    "--3", "+", ".", "0", "-1", "1e999", "-0", "nan", "inf", "1_000", "\N{SUPERSCRIPT TWO}",
    "\N{ARABIC-INDIC DIGIT THREE}", "9" * 20, "9" * 400, "9" * 5000, "0.1", "e", "%00", "%zz", "=",
    "&", "?csv=", "'", '"', '"""', "\N{SNOWMAN}", "\U0001f600", "\u202e", "\x1b[2J", "\ufeff",
    "true", "null", "[" * 3000, "a." * 3000, "smoothgrad(" * 50, "x" * 300, "[[" * 40, "{" * 3000,
)  # fmt: skip


def mutated(rng: random.Random, corpus: Sequence[str]) -> str:
    """Return one of the texts after one to four changes, most of them small."""
    text = rng.choice(corpus)
    for _ in range(rng.choices((1, 2, 3, 4), (8, 4, 1, 1))[0]):
        words = [*re.finditer(r"[^\W\d]+|\d+(?:\.\d+)?|\W", text)] or [*re.finditer("", text)]
        (first, last), other = rng.choice(words).span(), rng.choice(corpus)
        at, to = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        match rng.randint(0, 9):
            case 0:
                text = text[:at] + text[to:]
            case 1:
                text = text[:to] + text[at:]
            case 2:
                text = text[:at] + other[rng.randint(0, len(other)) :]
            case 3 | 4:  # a word by one of another text
                found = re.findall(r"\w+|\W", other) or [""]
                text = text[:first] + rng.choice(found) + text[last:]
            case 5:
                number = rng.choice((0, 1, 2, 3, 7, 10, 100, 0.5, -1, 2**31, 2**63, 1e-9, 1e30))
                text = text[:first] + str(number) + text[last:]
            case 6:
                text = text[:first] + rng.choice(NASTY) + text[last:]
            case 7:
                text = text[:at] + rng.choice(NASTY) + text[at:]
            case 8:
                text = text[:first] + text[last:]
            case _:
                letter = chr(rng.choice((rng.randint(0, 127), rng.randint(0, 0xD7FF))))
                text = text[:at] + letter + text[at + rng.randint(0, 1) :]
    return text[:20_000]


@dataclass(frozen=True)
class Parser:
    """What reads a kind of text, examples of it, and its part of all tries."""

    corpus: Sequence[str]
    read: Callable[[str], Any]
    part: float


METHOD_TEXTS = (
    "ig:10", "ig:auto", "ig:20:fitted", "ig:20:layer@blur:3", "ig@constant:0.5,-1,2e-3", "actgrad",
    "ig:5@mean:16", "ig:5@samples:4", "smoothgrad:8(gradient)", "smoothgrad(ig:3@zeros)", "gradcam",
    "unit_ablation:mean", "ig:5@zero_tokens", "activation",
)  # fmt: skip
TARGET_TEXTS = (
    "top1", "top5:softmax", "logit:285", "logit:3,-1,2:softmax", "label", "predicted:softmax",
    "contrast:frozen", "margin:logsumexp", "margin:mean:softmax", "entropy", "sum:1,2",
    "surprisal:0.1e-3",
)  # fmt: skip
PATTERNS = (
    "block1", "block*", "block[1-2].conv?:input@channels", "**.relu#0", ":input@features",
    "blocks.*.attn.proj:input@heads(4)[1:]", "b[!3]*@tokens[class]", "conv,block1",
    "preset:resnet_blocks@channels", "*@positions", "fc@features[-3:]",
)  # fmt: skip
RUN_TOMLS = (
    'sites = "block*"\nout = "run"\n[model]\nspec = "digits"\n[data]\nsource = "npz:a.npz"\n'
    'limit = 30\norientation = "exif"\n[collect]\nmethod = "ig:20"\ntarget = "top1:softmax"\n'
    'batch_size = "auto"\ntwins = ["random-weights#3", "shuffled-labels"]\n',
    'sites = ["a", "b"]\nlinks = ["collect", "report"]\n[fit]\nlearner = "topk"\nk = 3\n'
    'n_modes = "3x, rows/4"\nepochs = 30\nlr = 1e-3\nheld_out = 0.2\n[control]\n'
    'fractions = [0.1, 0.5]\nlabels = [1, 2]\nedits = ["ablate"]\nstrengths = [0.5, 1.0]\n',
    'sites = "*"\n[model]\ninput_shape = [1, 8, 8]\n[maps]\nn_modes = 3\ntarget = "logit:3"\n'
    '[report]\ntitle = "x"\n[retina]\n',
)  # fmt: skip
SWEEP_TOMLS = (
    'store = "a.zarr"\nseeds = [0, 1]\nsites = "block*"\n[train]\nepochs = 3\n[[grid]]\n'
    'learner = "topk"\nn_modes = ["1x", "3x", 40]\nk = [2, 4]\n',
    'store = "a.zarr"\nsign = "positive"\nquantity = "contribution"\n[[grid]]\nlearner = "sae"\n'
    'threshold = [0.5, 0.9]\n[[grid]]\nlearner = ["nmf"]\nheld_out = 0.3\n',
)  # fmt: skip
TABLES = (
    "file,label,name\na.png,3,a cat\nb.png,1,dog\n", "file,label\na.png,3.0\nb.png,\n",
    'label,file\ncat,a.png\n"dog, hound",b.png\n', "\ufefffile;label\na.png;1\n", "file\na.png\n",
)  # fmt: skip
NAMES = ('["zero", "one"]', '["a", "", "b", "a"]', '["\\ud83d\\ude00", "\\u00e9"]', "[]")
SOURCES = (
    "npz:a.npz", "npz:a.npy", "folder:photos?csv=t.csv", "folder:photos", "movie:m.npz?frames=0:20",
    "movie:m.h5?split=test&cells=0,2&history=40&unit=2.5&scaling=3,1.5&response=binned",
)  # fmt: skip
MODELS = (
    "digits", "torchvision:resnet18", "timm:vit_base.x", "huggingface:./a", "python:a.py:make",
    "circuit:5", "retina:a.pt",
)  # fmt: skip
RECORDS = (
    *(json.dumps(METHODS.parse(text).to_dict()) for text in METHOD_TEXTS),
    *(json.dumps(TARGETS.parse(text).to_dict()) for text in TARGET_TEXTS),
    '{"name": "Surprisal", "mean": [0.5, 1.0], "precision": [[1.0, 0.0], [0.0, 1.0]]}',
)


def parsers(folder: Path) -> dict[str, Parser]:
    """Return every parser of texts, with files in a folder."""
    model = small_resnet()
    sites = find_sites(model, "**")
    (folder / "photos").mkdir()
    for name in "ab":
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(folder / "photos" / f"{name}.png")
    np.savez(folder / "a.npz", images=np.zeros((2, 4, 4, 3), np.uint8))
    np.savez(folder / "m.npz", movie=np.random.default_rng(0).normal(size=(60, 4, 4)))
    (folder / "t.csv").write_text(TABLES[0])
    (folder / "a.py").write_text("def make(): ...\n")

    def written(name: str, read: Callable[[Path], Any]) -> Callable[[str], Any]:
        def of_file(text: str) -> Any:
            (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
            return read(folder / name)

        return of_file

    def plan(parse: Any) -> Callable[[Path], Any]:
        return lambda path: config.read_file(path, path.name, parse)

    def record(text: str) -> Any:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return
        if isinstance(found, dict):
            (method_from_dict if rng.random() < 0.5 else target_from_dict)(found)

    def source(text: str) -> Any:
        if not text.startswith("digits"):
            load_data(text, folder=folder)

    def labels(path: Path) -> Any:
        names = None if rng.random() < 0.5 else folder / "names.json"
        return load_data("folder:photos", csv=path, label_names=names, folder=folder)

    (folder / "names.json").write_text('["cat", "dog", "a", "b"]')
    rng = random.Random(1)
    return {
        "methods": Parser(METHOD_TEXTS, METHODS.parse, 0.22),
        "baselines": Parser([t.partition("@")[2] for t in METHOD_TEXTS], BASELINES.parse, 0.1),
        "targets": Parser(TARGET_TEXTS, TARGETS.parse, 0.22),
        "twins": Parser(("random-weights:b#2", "shuffled-labels#1"), TWINS.parse, 0.125),
        "one site": Parser(PATTERNS, Site.parse, 0.1),
        "patterns in a model": Parser(PATTERNS, lambda t: find_sites(model, t), 0.04),
        "patterns in a store": Parser(PATTERNS, lambda t: match_sites(sites, t), 0.04),
        "a site of a store": Parser(PATTERNS, lambda t: find_site(sites, t), 0.02),
        "shapes": Parser(("3,224,224", "1x8x8", "5"), shape_of, 0.06),
        "run.toml": Parser(RUN_TOMLS, written("run.toml", plan(config.from_dict)), 0.01),
        "sweep.toml": Parser(SWEEP_TOMLS, written("sweep.toml", plan(sweep.from_dict)), 0.002),
        "csv": Parser(TABLES, written("t2.csv", labels), 0.01),
        "names": Parser(NAMES, written("n.json", lambda p: Hierarchy(read_names(p))), 0.01),
        "data": Parser(SOURCES, source, 0.001),
        "models": Parser(
            MODELS, lambda t: registry.opener("model", t, FAMILIES, "condec.models"), 0.001
        ),
        "functions": Parser(
            ("a.py:make", "python:a.py:make"), lambda t: load_function(t, folder=folder), 0.01
        ),
        "records": Parser(RECORDS, record, 0.031),
    }


@contextmanager
def bounded(gib: float) -> Iterator[None]:
    """Let the process take so much more memory than it has at the peak so far."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < gib * 2**20


def tried(parser: Parser, number: int, seed: int) -> tuple[int, float]:
    """Try so many texts; return how many were refused, and the longest time that one took."""
    rng, refused, longest = random.Random(seed), 0, 0.0
    for _ in range(number):
        text = mutated(rng, parser.corpus)
        start = time.perf_counter()
        try:
            parser.read(text)
        except CondecError as error:
            refused += 1
            assert str(error), text
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}\nof {text!r:.2000}") from error
        longest = max(longest, time.perf_counter() - start)
    return refused, longest


def all_tried(folder: Path, in_all: int) -> None:
    """Try all parsers, and print what became of it."""
    print(f"\n{'parser':22}{'tried':>10}{'refused':>10}{'longest s':>11}")
    with bounded(1.0), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("error")
        for seed, (name, parser) in enumerate(parsers(folder).items()):
            number = max(20, round(parser.part * in_all))
            refused, longest = tried(parser, number, seed)
            print(f"{name:22}{number:10,}{refused:10,}{longest:11.3f}")


def test_texts_are_read_or_refused(tmp_path: Path) -> None:
    all_tried(tmp_path, QUICK)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_texts_are_read_or_refused(tmp_path: Path) -> None:
    all_tried(tmp_path, IN_ALL)


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (METHODS.parse, "ig:" + "9" * 20, "method 'ig:9+': expected"),
        (METHODS.parse, "smoothgrad(" * 300, "longer than 1000 letters"),
        (METHODS.parse, "ig@constant:1e999", "Constant: value must be finite; got inf"),
        (METHODS.parse, "ig@blur:1e999", "sigma must be positive and finite; got inf"),
        (TARGETS.parse, "top\N{SUPERSCRIPT TWO}", "target 'top.': expected"),
        (partial(find_sites, small_resnet()), "block[z-a]", "'block.z-a.': bad character range"),
        (partial(find_sites, small_resnet()), "*a" * 9, "9 wildcards in one part, of 4 at most"),
        (partial(find_sites, small_resnet()), "block#" + "9" * 20, "expected GLOB"),
        (load_data, "npz:a\0b", "path 'a.*b': expected names of at most 255 bytes"),
        (load_data, "npz:" + "a" * 300, "expected names of at most 255 bytes"),
    ],
)  # fmt: skip
def test_found_by_fuzzing(read: Callable[[str], Any], text: str, message: str) -> None:
    with pytest.raises(CondecError, match=message):
        read(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 5000, "not TOML: .*recursion"),
        ("a" + ".a" * 5000 + " = 1", "tables inside more than 8 others"),
        ('sites = "*"\n[fit]\nn_modes = ' + "9" * 400, "a number of more than 64 bits, 9+"),
        ('sites = "*"\n[fit]\nn_modes = ' + "9" * 5000, "not TOML: .*digits"),
        ('sites = "*"\nout = "a\\u0000b"', "path 'a.*b': expected names"),
    ],
)  # fmt: skip
def test_files_of_plans_that_no_one_writes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(CondecError, match=f"run.toml: .*{message}"):
        config.read(tmp_path)


def test_a_grid_of_too_many_fits_is_refused() -> None:
    grid = {"learner": "topk", "k": [*range(1, 400)], "n_modes": [*range(1, 400)]}
    with pytest.raises(CondecError, match="grid 1: 159,201 configurations; expected 100,000 at mo"):
        sweep.from_dict({"store": "a.zarr", "grid": [grid]})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"name": ["Zeros"]}, r"expected one of .*; got \['Zeros'\]"),
        (
            {"name": "SmoothGrad", "inner": "ActGrad"},
            "inner: expected a record with a name; got 'ActGrad'",
        ),
        (
            {"name": "UnitAblation", "replacement": "mean", "means": 3},
            "method UnitAblation: 'int' object has no",
        ),
        ({"name": "Surprisal", "mean": "x"}, "target Surprisal: mean: "),
        ({"name": "Surprisal", "precision": [[1.0], [1.0, 2.0]]}, "target Surprisal: precision: "),
    ],
)
def test_records_that_no_option_wrote(record: dict[str, Any], message: str) -> None:
    read = target_from_dict if record["name"] == "Surprisal" else method_from_dict
    with pytest.raises(OptionError, match=message):
        read(record)


def test_toml_itself_is_as_expected() -> None:
    """Examples are valid: what is mutated begins as what is read."""
    for text in RUN_TOMLS:
        config.from_dict(tomllib.loads(text))
    for text in SWEEP_TOMLS[:1]:
        sweep.from_dict(tomllib.loads(text))
