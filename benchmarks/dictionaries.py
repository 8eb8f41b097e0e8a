"""How well modes single out classes: of contributions, of activations, and single channels.

A ResNet-20 and 2,000 images of CIFAR-10, sites layer2.1, layer3.0 and layer3.1, every learner
of `condec.dictionary`. For each class, the mode whose loadings correlate best with the class is
chosen on training rows, and its correlation on held-out rows (a fifth) counts; the mean over
the 10 classes is the class correlation. A seed is one of the fit and of the split, the same for
all that is compared.

Sparsity is made equal: `L0` loadings of a row. TopK, BatchTopK, Matryoshka, matching pursuit and
JumpReLU take that number as an option; the penalties of ReLU and DictionaryLearning are set by
bisection on the training rows of the first seed, with fewer steps; of ThresholdSAE, NMF, PCA and
FastICA, which have no such option, the `L0` loadings of a row that move its reconstruction most
are kept and the others set to 0. k-means has one loading a row.

    python benchmarks/dictionaries.py [--quick] [--seeds 3] [--store PATH] [--publish]
"""

import argparse
import dataclasses
import json
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from measure import RESULTS, paste, write

from condec.attribution import IntegratedGradients
from condec.attribution.targets import TopK
from condec.basis.metrics import correlation_matrix, r2
from condec.basis.metrics import l0 as count_loadings
from condec.data import load_data
from condec.dictionary import (
    NMF,
    PCA,
    BatchTopKSAE,
    DictionaryLearning,
    FastICA,
    JumpReLUSAE,
    KMeans,
    Learner,
    MatchingPursuit,
    MatryoshkaSAE,
    ReLUSAE,
    ThresholdSAE,
    TopKSAE,
    TrainConfig,
    fit,
)
from condec.dictionary.measure.rivals import strongest_loadings
from condec.models import load_model
from condec.models.python import load_function
from condec.modes.labels import membership
from condec.store.collection import collect
from condec.store.store import Quantity, Store

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "cifar10"
SITES = ("layer2.1", "layer3.0", "layer3.1")
QUANTITIES: tuple[Quantity, ...] = ("contribution", "activation")
L0 = 8
CHANNELS = "single channels"
KEPT = (ThresholdSAE, NMF, PCA, FastICA)
"""Learners of which only the strongest loadings of a row are kept."""
TUNED = {ReLUSAE: ("l1", 1e-3, 3.0), DictionaryLearning: ("alpha", 1e-3, 3.0)}
"""Option that decides the sparsity, and the range that is searched."""


def learners(n_units: int) -> list[Learner]:
    """Every learner: three times as many modes as units, as many where there can be no more."""
    wide = 3 * n_units
    return [
        ThresholdSAE(wide),
        ReLUSAE(wide),
        TopKSAE(wide, k=L0),
        BatchTopKSAE(wide, k=L0),
        JumpReLUSAE(wide, target_l0=float(L0)),
        MatryoshkaSAE(wide, k=L0),
        MatchingPursuit(wide, k=L0),
        DictionaryLearning(wide),
        KMeans(wide),
        NMF(n_units, max_iter=300),
        PCA(n_units),
        FastICA(n_units),
    ]


def class_correlation(
    loadings: torch.Tensor, member: torch.Tensor, train: torch.Tensor, held_out: torch.Tensor
) -> list[float]:
    """Held-out correlation of every class with its best mode, chosen on training rows."""
    best = correlation_matrix(loadings[train], member[train]).argmax(0, keepdim=True)
    found = correlation_matrix(loadings[held_out], member[held_out]).gather(0, best)
    return found.flatten().tolist()


def tuned(learner: Learner, matrix: torch.Tensor, seed: int) -> Learner:
    """The learner with its penalty set so that training rows have `L0` loadings, nearly."""
    if type(learner) not in TUNED:
        return learner
    name, low, high = TUNED[type(learner)]
    config = TrainConfig(seed=seed, split_seed=seed, steps=1000)
    best, gap = learner, float("inf")
    for _ in range(5):
        middle = (low * high) ** 0.5
        tried = dataclasses.replace(learner, **{name: middle})  # type: ignore[type-var]
        report = fit(tried, matrix, config=config)
        found = report.metrics["train"].l0
        if abs(found - L0) < gap:
            best, gap = tried, abs(found - L0)
        if gap < 0.05 * L0:
            break
        low, high = (middle, high) if found > L0 else (low, middle)
    return best


def measured(
    path: str, site: str, quantity: Quantity, learner: Learner, seeds: int
) -> list[dict[str, Any]]:
    """One learner at one site, all seeds."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = Store.open(path)
    matrix, member = store.matrix(site, quantity=quantity), membership(store.labels)
    options, rows = tuned(learner, matrix, 0), []
    for seed in range(seeds):
        started = time.perf_counter()
        report = fit(options, matrix, config=TrainConfig(seed=seed, split_seed=seed))
        dictionary, held_out = report.dictionary, report.held_out_rows
        loadings = dictionary.encode(matrix)
        native = float(count_loadings(loadings[held_out]).double().mean())
        if isinstance(learner, KEPT):
            keep = torch.full((len(loadings),), L0)
            loadings = strongest_loadings(dictionary, loadings, keep)
        used = loadings[held_out]
        rows.append(_row(site, quantity, type(learner).__name__, seed) | {
            "options": options.to_dict(),
            "correlation": class_correlation(loadings, member, report.train_rows, held_out),
            "r2": r2(matrix[held_out], dictionary.decode(used)),
            "l0": float(count_loadings(used).double().mean()),
            "l0_before": native,
            "dead_share": 1.0 - int((used > 0).any(0).sum()) / dictionary.n_modes,
            "seconds": time.perf_counter() - started,
        })  # fmt: skip
    return rows


def channels(path: str, site: str, quantity: Quantity, seeds: int) -> Iterator[dict[str, Any]]:
    """The same of single units, on the rows that the fits hold out."""
    from condec.dictionary import split_rows

    store = Store.open(path)
    matrix, member = store.matrix(site, quantity=quantity), membership(store.labels)
    for seed in range(seeds):
        held_out = split_rows(len(matrix), TrainConfig().held_out, seed)
        train = torch.ones(len(matrix), dtype=torch.bool)
        train[held_out] = False
        found = class_correlation(matrix, member, train.nonzero().flatten(), held_out)
        yield _row(site, quantity, CHANNELS, seed) | {"correlation": found}


def _row(site: str, quantity: str, learner: str, seed: int) -> dict[str, Any]:
    return {"site": site, "quantity": quantity, "learner": learner, "seed": seed}


def collected(path: Path, data: Path) -> Store:
    """Contributions of the 2,000 images; a complete store is only opened."""
    model = load_model(
        f"python:{data / 'cifar_resnet.py'}:load_resnet",
        weights=data / "resnet20_cifar10.safetensors",
    )
    preprocess = load_function(f"{data / 'cifar_resnet.py'}:preprocess")
    inputs = load_data(f"npz:{data / 'test_2000.npz'}", preprocess=preprocess)
    return collect(
        model.model,
        inputs,
        ", ".join(SITES),
        method=IntegratedGradients(steps=10),
        target=TopK(k=1),
        out=path,
        batch_size=100,
        shard_size=500,
    )


def summary(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Mean over seeds, and what is said of their spread, by learner, site and quantity."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["learner"], row["site"], row["quantity"]), []).append(row)
    found = {}
    for key, some in groups.items():
        means = [statistics.mean(row["correlation"]) for row in some]
        classes = [
            statistics.mean(c) for c in zip(*(row["correlation"] for row in some), strict=True)
        ]
        found[key] = {
            "mean": statistics.mean(means),
            "spread": statistics.stdev(means) if len(means) > 1 else 0.0,
            "lowest": min(classes),
            "highest": max(classes),
        }
        for name in ("r2", "l0", "dead_share"):
            if name in some[0]:
                found[key][name] = statistics.mean(row[name] for row in some)
    return found


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Two tables in Markdown: class correlation, and what the dictionaries are like."""
    found = summary(rows)
    names = list(dict.fromkeys(row["learner"] for row in rows))
    lines = [
        "| | " + " | ".join(f"{site}, contributions | activations" for site in SITES) + " |",
        "|---" * (1 + 2 * len(SITES)) + "|",
    ]
    for name in names:
        cells = [found[name, site, quantity] for site in SITES for quantity in QUANTITIES]
        words = [f"{c['mean']:.2f} ± {c['spread']:.2f}" for c in cells]
        lines.append(f"| {_code(name)} | " + " | ".join(words) + " |")
    site = SITES[-1]
    lines += [
        "",
        f"At {site}, contributions before activations; classes: lowest and highest:",
        "",
        "| | classes, contributions | activations | L0 | | R2 | | dead, held out | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        both = [found[name, site, quantity] for quantity in QUANTITIES]
        words = [f"{c['lowest']:.2f} to {c['highest']:.2f}" for c in both]
        for key, text in (("l0", "{:.1f}"), ("r2", "{:.2f}"), ("dead_share", "{:.0%}")):
            words += [text.format(c[key]) if key in c else "" for c in both]
        lines.append(f"| {_code(name)} | " + " | ".join(words) + " |")
    return "\n".join(lines)


def counts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Where contributions do better than activations, by more than the seeds differ."""
    found = summary(rows)
    names = [name for name in dict.fromkeys(row["learner"] for row in rows) if name != CHANNELS]
    said = []
    for site in SITES:
        above, below = [], []
        for name in names:
            ours, theirs = (found[name, site, quantity] for quantity in QUANTITIES)
            gap, noise = ours["mean"] - theirs["mean"], max(ours["spread"], theirs["spread"])
            if abs(gap) > noise:
                (above if gap > 0 else below).append(f"`{name}`")
        best = max((found[CHANNELS, site, q] for q in QUANTITIES), key=lambda one: one["mean"])
        ours = {name: found[name, site, "contribution"] for name in names}
        beats = [
            f"`{name}`"
            for name, one in ours.items()
            if one["mean"] - best["mean"] > max(one["spread"], best["spread"])
        ]
        said.append(
            f"{site}: modes of contributions are above those of activations for {len(above)} of "
            f"{len(names)} learners, and below for {', '.join(below) or 'none'}; they are above "
            f"single channels ({best['mean']:.2f}) for {', '.join(beats) or 'none'}"
        )
    return said


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Class correlation of all learners at the three sites."""
    from condec.figures.style import (
        ACTIVATION,
        CONTRIBUTION,
        list_names,
        panels,
        save_figure,
        styled,
        title,
    )

    found = summary(rows)
    names = [name for name in dict.fromkeys(row["learner"] for row in rows) if name != CHANNELS]
    colours = dict(zip(QUANTITIES, (CONTRIBUTION, ACTIVATION), strict=True))
    with styled():
        figure, axes = panels(len(SITES), height=4.0, width=3.6)
        for place, (axis, site) in enumerate(zip(axes, SITES, strict=True)):
            title(axis, site, "class against its best mode, held out")
            for quantity, colour in colours.items():
                shift = -0.13 if quantity == "contribution" else 0.13
                line = found[CHANNELS, site, quantity]["mean"]
                axis.axvline(line, color=colour, linewidth=1.2, linestyle=(0, (3, 2)), zorder=0)
                for row, name in enumerate(names):
                    one = found[name, site, quantity]
                    ends = [one["mean"] - one["spread"], one["mean"] + one["spread"]]
                    axis.plot(ends, [row + shift] * 2, color=colour, linewidth=1.6)
                    axis.plot(one["mean"], row + shift, "o", color=colour, markersize=4.5)
            axis.set_yticks(range(len(names)), names if not place else [])
            axis.set_ylim(len(names) - 0.4, -0.6)
            axis.tick_params(axis="y", length=0)
            axis.spines["left"].set_visible(False)
            axis.set_xlim(0, 0.8)
            axis.set_xlabel("dashed: single channels")
        list_names(axes[-1], [("contributions", CONTRIBUTION), ("activations", ACTIVATION)])
    save_figure(figure, file)


def _code(name: str) -> str:
    return name if name == CHANNELS else f"`{name}`"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one seed; nothing is put into docs/")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--store", type=Path, default=ROOT / "runs" / "dictionaries.zarr")
    parser.add_argument(
        "--data", type=Path, default=DATA, help="folder of the images and the model"
    )
    parser.add_argument(
        "--learner", action="append", help="only these; the last result keeps the others"
    )
    parser.add_argument("--publish", action="store_true", help="tables and figure of the last run")
    args = parser.parse_args()
    if args.publish:
        publish(json.loads((RESULTS / "dictionaries.json").read_text())["rows"])
        return
    seeds, started = 1 if args.quick else args.seeds, time.perf_counter()
    path = str(collected(args.store, args.data).path)
    store, rows = Store.open(path), []
    names = [type(learner).__name__ for learner in learners(1)]
    chosen = [i for i, name in enumerate(names) if not args.learner or name in args.learner]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        # By learner, so that the table has them in this order.
        jobs = [
            pool.submit(measured, path, site, quantity, learners(n_units)[kind], seeds)
            for kind in chosen
            for site in SITES
            for n_units in (store.info(site).n_units,)
            for quantity in QUANTITIES
        ]
        for job in jobs:
            rows += job.result()
            _print(rows[-1])
    for site in SITES:
        for quantity in QUANTITIES:
            rows += channels(path, site, quantity, seeds)
            _print(rows[-1])
    name = "dictionaries_quick" if args.quick else "dictionaries"
    rows = together(name, rows)
    write(
        name,
        {
            "what": f"ResNet-20, {len(store)} images of CIFAR-10, positive parts, {seeds} seeds of "
            f"fit and split, {L0} loadings a row; correlation of every class with its best mode, "
            "chosen on training rows, on held-out rows",
            "minutes": (time.perf_counter() - started) / 60,
            "found": counts(rows),
            "rows": rows,
        },
    )
    print(tables(rows))
    print("\n".join(counts(rows)))
    if not args.quick:
        publish(rows)


def together(name: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """These rows, each in the place of the same in the last result, which keeps its others."""
    file = RESULTS / f"{name}.json"
    earlier = json.loads(file.read_text())["rows"] if file.exists() else []
    keys = ("site", "quantity", "learner", "seed")
    found = {tuple(row[key] for key in keys): row for row in earlier}
    return list((found | {tuple(row[key] for key in keys): row for row in rows}).values())


def publish(rows: Sequence[dict[str, Any]]) -> None:
    """Tables and figure into docs/."""
    said = "\n".join(f"- {line}." for line in counts(rows))
    rule = "Counted where two means are apart by more than the larger of their standard deviations:"
    paste("dictionaries", f"{tables(rows)}\n\n{rule}\n\n{said}")
    draw(rows, ROOT / "docs" / "assets" / "dictionaries.png")


def _print(row: dict[str, Any]) -> None:
    known = " ".join(
        f"{k} {row[k]:.2f}" for k in ("r2", "l0", "l0_before", "dead_share", "seconds") if k in row
    )
    mean = statistics.mean(row["correlation"])
    print(
        f"{row['site']} {row['quantity']:12s} {row['learner']:20s} {mean:.3f} {known}", flush=True
    )


if __name__ == "__main__":
    main()
