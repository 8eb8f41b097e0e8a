"""Small runs, made in seconds: a folder with everything, and the sources of a plan."""

import atexit
import json
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from condec.attribution import IntegratedGradients
from condec.basis.files import to_json
from condec.basis.npz import save_record
from condec.data import Inputs, as_inputs
from condec.dictionary import (
    DeadModesWarning,
    KMeans,
    Learner,
    ThresholdSAE,
    TrainConfig,
    fit,
    fit_rivals,
    load_dictionary,
    stability,
)  # fmt: skip
from condec.effects import CurveOptions, compare, measure_curves
from condec.explanation import site_maps
from condec.modes import Modes, membership
from condec.network import Site
from condec.run import Run, config
from condec.store import RunFolder, Store, collect, layer_statistics
from condec.testing.models import small_resnet

SITES: Final = ("block1", "block2:input")
FRACTIONS: Final = (0.25, 0.5, 0.75)
CONFIG: Final = TrainConfig(held_out=0.3, steps=200)
LABEL_NAMES: Final = ("cat", "dog & <b>wolf</b>", "owl")
NET: Final = """
from condec.testing.models import small_resnet

def make():
    return small_resnet(labels=3)
"""
TOML: Final = """
sites = "block*"
model = {spec = "python:net.py:make", device = "cpu"}
data = {source = "npz:data.npz"}
collect = {method = "ig:2", target = "predicted", batch_size = 16, shard_size = 16}
fit = {learner = "kmeans", n_modes = 3, held_out = 0.4}
control = {sites = "block2", fractions = [0.25, 0.5], edits = ["ablate"], n_random = 1}
maps = {n_modes = 2, n_inputs = 2, n_units = 1}
explain = {n_inputs = 1}
report = {title = "Small"}
"""


def write_source(folder: Path) -> Path:
    """Write a network, 40 images and a run.toml, the run folder to be in ``run``."""
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 1), dtype=np.uint8)
    labels, names = np.arange(40) % 3, ["a", "b", "c"]
    np.savez(folder / "data.npz", images=images, labels=labels, class_names=names)
    (folder / "net.py").write_text(NET)
    (folder / "run.toml").write_text(TOML)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files below a folder, but those of a run that differ from time to time."""
    found = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in found
        if file.name not in ("log.jsonl", ".lock")
    }


def undo(folder: Path, link: str) -> None:
    """Have a link of a finished run something to do: its records go, for `collect` a shard's."""
    for record in (folder / "tasks").glob(f"{link}*.json"):
        record.unlink()
    if link in ("collect", "run"):
        for record in (folder / "contributions.zarr" / "manifest").glob("*1.json"):
            record.unlink()


def quick_report(folder: Path, more: object = ()) -> Path:
    """Stand in for the report, which takes seconds."""
    page = folder / "report" / "index.html"
    page.parent.mkdir(exist_ok=True)
    page.write_text((folder / "run.toml").read_text())
    return page


def small_inputs(*, n_samples: int = 60, seed: int = 0, bad: Sequence[int] = ()) -> Inputs:
    """Make random images [1, 8, 8] of three labels, a bright bar in another place for each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n_samples) % 3
    images = torch.rand(n_samples, 1, 8, 8, generator=generator)
    for row, label in enumerate(labels.tolist()):
        images[row, 0, 2 * label + 1] += 2
    images[list(bad)] = torch.nan
    return as_inputs((images, labels))


def run_of(source: Path, **changes: object) -> Run:
    """Return the run of sources that were written, with other fields of its plan."""
    plan = config.read(source / "run.toml")
    return Run(replace(plan, **changes), progress=False)  # type: ignore[arg-type]


def small_run(
    folder: str | Path,
    *,
    label_names: Sequence[str] | None = LABEL_NAMES,
    labelled: bool = True,
    links: Sequence[str] = ("stats", "fit", "control", "map", "check"),
    bad: Sequence[int] = (),
) -> Path:
    """Write a run folder of a `small_resnet` on `small_inputs`; one is made once, and copied.

    Parameters
    ----------
    folder : path
    label_names : sequence of str, optional
    labelled : bool
        Whether the inputs have labels.
    links : sequence of str
        What is done after contributions are collected; ``"check"`` are rivals and stability,
        of the site without gradient descent.
    bad : sequence of int
        Inputs that are NaN, and skipped.
    """
    options = (label_names and (*label_names,), labelled, (*links,), (*bad,))
    if options not in _RUNS:
        _RUNS[options] = Path(tempfile.mkdtemp()) / "run"
        atexit.register(shutil.rmtree, _RUNS[options].parent, ignore_errors=True)
        _make_run(_RUNS[options], *options)
    return Path(shutil.copytree(_RUNS[options], folder, dirs_exist_ok=True))


_RUNS: Final[dict[tuple[Any, ...], Path]] = {}


def _make_run(
    folder: Path, label_names: Sequence[str] | None, labelled: bool, links: Sequence[str],
    bad: Sequence[int],
) -> None:  # fmt: skip
    place, model, inputs = RunFolder(folder), small_resnet(), small_inputs(bad=bad)
    if not labelled:
        inputs = as_inputs(torch.stack([inputs.read(i) for i in range(len(inputs))]))
    method, out = IntegratedGradients(steps=4), place.store
    store = collect(model, inputs, SITES, method=method, out=out, on_bad="skip", progress=False)
    labels = place.write(place.labels, to_json(label_names and list(label_names)))
    place.ledger.mark_done("collect", "collect", {"model": {"spec": "small"}}, (), [labels])
    place.write(place.plan, b'[model]\nspec = "small"\n[report]\ntitle = "A small run"\n')
    line = {"time": "2026-03-01T12:00:00+00:00", "event": "end", "link": "map"}
    place.write(place.log_file, json.dumps(line).encode() + b"\n")
    if "stats" in links:
        place.write_table(layer_statistics(store), "statistics")
    for site in store.sites if "fit" in links else ():
        name, learner = ("sae", ThresholdSAE(8)) if site.tap == "output" else ("kmeans", KMeans(4))
        modes = add_modes(place, store, site, name, learner)
        add_results(place, inputs, modes, name, links)
    record(place)


def record(place: RunFolder | Path) -> None:
    """Write into the ledger of a run folder that all that lies there is as it should be."""
    place = RunFolder(place if isinstance(place, Path) else place.path)
    found = [file for file in place.analysis().rglob("*") if file.is_file()]
    left = {*found, *place.path.glob("modes/*/*")}
    for entry in list(place.ledger.entries.values()):
        outputs, inputs = ([place.path / n for n in some] for some in (entry.outputs, entry.inputs))
        outputs = [output for output in outputs if output.exists()]
        place.ledger.mark_done(entry.task, entry.link, entry.made_from, inputs, outputs)
        left -= {*outputs}
    if left:
        place.ledger.mark_done(f"by hand {len(place.ledger.entries)}", "run", {}, (), sorted(left))


def add_modes(place: RunFolder, store: Store, site: Site, name: str, learner: Learner) -> Modes:
    """Fit a learner at one site of a run, and save dictionary and modes."""
    with warnings.catch_warnings():
        # So few rows do not use all modes.
        warnings.simplefilter("ignore", DeadModesWarning)
        fitted = fit(learner, store.matrix(site), config=CONFIG)
    fitted.save(place.modes(site.key, name))
    modes = Modes.build(fitted.dictionary, store, site, held_out_rows=fitted.held_out_rows)
    modes.save(place.modes(site.key, name))
    return modes


def add_results(
    place: RunFolder, inputs: Inputs, modes: Modes, name: str, links: Sequence[str]
) -> None:
    """Add checks of a learner without gradient descent, maps and control curves."""
    import pandas

    key, store = modes.site.key, modes.store
    fitted = load_dictionary(place.modes(key, name))
    labelled = bool((store.labels >= 0).any())
    if "check" in links and isinstance(fitted.learner, KMeans):
        learner, matrix = fitted.learner, store.matrix(modes.site)
        again = stability(learner, matrix, config=CONFIG)
        table = again.table().assign(between_halves=again.between_halves, n_seeds=5)
        place.write_table(table, "stability", key, name)
        members = membership(store.labels) if labelled else None
        table = fit_rivals(learner, matrix, indicators=members, config=CONFIG, fitted=fitted)
        place.write_table(table, "rivals", key, name)
    model = small_resnet()
    if "map" in links:
        maps = site_maps(model, inputs, modes, n_modes=3, n_inputs=3, n_units=2)
        save_record(place.maps(key, name), maps)
    if "control" in links and labelled:
        options = (CurveOptions(fractions=FRACTIONS, edit=e) for e in ("ablate", "preserve"))
        curves = [measure_curves(model, inputs, modes, one) for one in options]
        made = {
            "control": [one.to_frame() for one in curves],
            "control_comparison": [compare(one) for one in curves],
        }
        for kind, tables in made.items():
            place.write_table(pandas.concat(tables, ignore_index=True), kind, key, name)


def hostile_source(folder: Path, names: Sequence[str]) -> Path:
    """Write a network and a run.toml as `write_source`, with inputs and labels of given names."""
    write_source(folder)
    with np.load(folder / "data.npz") as arrays:
        ids = np.array([*names, *(f"photo {n}" for n in range(len(names), 40))])
        labels = np.array([*names[:2], "c"])
        np.savez(folder / "data.npz", **{**arrays, "ids": ids, "class_names": labels})
    return folder
