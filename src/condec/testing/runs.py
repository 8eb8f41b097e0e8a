"""A small run folder with everything in it, made in seconds."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

import torch

from condec.attribution import IntegratedGradients
from condec.data import Inputs, as_inputs
from condec.dictionary import (
    DeadModesWarning,
    KMeans,
    ThresholdSAE,
    TrainConfig,
    fit,
    fit_rivals,
    stability,
)
from condec.effects import CurveOptions, compare, measure_curves
from condec.explain import site_maps
from condec.modes import Modes, membership
from condec.store import collect, layer_statistics
from condec.testing.models import small_resnet

SITES: Final = ("block1", "block2:input")
FRACTIONS: Final = (0.25, 0.5, 0.75)
LABEL_NAMES: Final = ("cat", "dog & <b>wolf</b>", "owl")


def small_inputs(*, n_samples: int = 60, seed: int = 0, bad: Sequence[int] = ()) -> Inputs:
    """Random images [1, 8, 8] of three labels, a bright bar in another place for each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n_samples) % 3
    images = torch.rand(n_samples, 1, 8, 8, generator=generator)
    for row, label in enumerate(labels.tolist()):
        images[row, 0, 2 * label + 1] += 2
    images[list(bad)] = torch.nan
    return as_inputs((images, labels))


def small_run(
    folder: str | Path,
    *,
    label_names: Sequence[str] | None = LABEL_NAMES,
    labelled: bool = True,
    links: Sequence[str] = ("stats", "fit", "control", "map", "check"),
    bad: Sequence[int] = (),
) -> Path:
    """Write a run folder of a `small_resnet` on `small_inputs`.

    Parameters
    ----------
    folder : path
    label_names : sequence of str, optional
    labelled : bool
        Whether the inputs have labels.
    links : sequence of str
        What is done after contributions are collected; ``"check"`` are controls and stability,
        of the site without gradient descent.
    bad : sequence of int
        Inputs that are NaN, and skipped.
    """
    folder, model, inputs = Path(folder), small_resnet(), small_inputs(bad=bad)
    if not labelled:
        inputs = as_inputs(torch.stack([inputs.read(i) for i in range(len(inputs))]))
    store = collect(
        model,
        inputs,
        SITES,
        method=IntegratedGradients(steps=4),
        out=folder / "contributions.zarr",
        on_bad="skip",
        progress=False,
    )
    analysis = folder / "analysis"
    analysis.mkdir()
    (analysis / "labels.json").write_text(json.dumps(label_names and list(label_names)))
    (folder / "run.toml").write_text('[model]\nspec = "small"\n[report]\ntitle = "A small run"\n')
    line = {"time": "2026-03-01T12:00:00+00:00", "event": "end", "link": "map"}
    (folder / "log.jsonl").write_text(json.dumps(line) + "\n")
    if "stats" in links:
        layer_statistics(store).to_parquet(analysis / "statistics.parquet", index=False)
    if "fit" not in links:
        return folder
    curves = []
    for site in store.sites:
        place = quote(site.key, safe="")
        learner = KMeans(4) if site.tap == "input" else ThresholdSAE(8)
        name = "kmeans" if site.tap == "input" else "sae"
        config = TrainConfig(held_out=0.3, steps=200)
        with warnings.catch_warnings():
            # So few rows do not use all modes.
            warnings.simplefilter("ignore", DeadModesWarning)
            fitted = fit(learner, store.matrix(site), config=config)
        fitted.save(folder / "modes" / place / name)
        modes = Modes.build(fitted.dictionary, store, site, held_out_rows=fitted.held_out_rows)
        modes.save(folder / "modes" / place / name)
        if "check" in links and isinstance(learner, KMeans):
            matrix = store.matrix(site)
            members = membership(store.labels) if labelled else None
            controls = fit_rivals(
                learner, matrix, indicators=members, config=config, fitted=fitted.dictionary
            )
            again = stability(learner, matrix, config=config)
            table = again.table().assign(between_halves=again.between_halves, n_seeds=5)
            for folder_name, rows in (("rivals", controls), ("stability", table)):
                file = analysis / folder_name / place / f"{name}.parquet"
                file.parent.mkdir(parents=True)
                rows.to_parquet(file, index=False)
        if "map" in links:
            maps = site_maps(model, inputs, modes, n_modes=3, n_inputs=3, n_units=2)
            maps.save(analysis / "maps" / place / f"{name}.npz")
        if "control" in links and labelled:
            curves += [
                measure_curves(model, inputs, modes, CurveOptions(fractions=FRACTIONS, edit=edit))
                for edit in ("ablate", "preserve")
            ]
    if curves:
        import pandas

        table = pandas.concat([one.to_frame() for one in curves], ignore_index=True)
        table.to_parquet(analysis / "control.parquet", index=False)
        table = pandas.concat([compare(one) for one in curves], ignore_index=True)
        table.to_parquet(analysis / "control_comparison.parquet", index=False)
    return folder
