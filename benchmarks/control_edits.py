"""Whether an edit by modes is as selective as every choice of units without a dictionary.

Five seeds. ResNet-20 on 1,000 images of CIFAR-10: seeds of halves and fits, judged on 200 images
of the other half. MobileNetV2 on all 120 photos of ten superclasses, leave one out: 12 times one
photo of each is set aside, and judged by what the other 110 say; the twelve are fitted from the
five seeds in turn, and `PASSES` passes shift who has which. Each image is
judged under the edits of its own label and of some others (`OTHERS`), at growing doses.

Every edit is a share w of the activation at each unit that is taken away, a -> (1 - w) a; its dose
is the mean of w over the units (of inputs of the label, where w depends on the input). A ranking
of units has w = 1 on the first of them. Responsibility edits have w = the share of the unit that
the label's modes answer for at that input (`condec.explanation.shares`), the modes taken in the
order of how much more the label uses them than others do.

    python benchmarks/control_edits.py collect|measure|publish [--model ...] [--site ...]
        [--seed ...]

What is there is not done again: a file a model, site and seed under runs/control_edits.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

import selectivity as known
from measure import RESULTS, paste, write

from condec import contribute
from condec.attribution import ActGrad, IntegratedGradients
from condec.attribution.contributions import SiteContributions
from condec.basis.bootstrap import interval, resample_counts
from condec.dictionary import ThresholdSAE, TrainConfig, fit, import_dictionary
from condec.edits import count_units, record_activation
from condec.effects import ByModeSum, ByScores, ByUnit, RandomUnits, Ranking
from condec.effects.intervals import draw_weights, selectivity
from condec.explanation.shares import Shares
from condec.explanation.turning import Turning
from condec.modes import Modes
from condec.network import Site, Splitter, Units, find_sites
from condec.store import Store, collect

FOLDER = known.ROOT / "runs" / "control_edits"
DOSES = (0.05, 0.12, 0.25, 0.5)
SEEDS = range(5)
PASSES = {"resnet20": 5, "mobilenet": 1}
"""Times that everything is measured: of ResNet-20 a pass is a seed."""
FREE = (
    "mean_contribution", "contribution_difference", "activation_difference", "act_grad_difference",
    "act_grad_correlation", "layer_path_difference", "ablation_difference",
)  # fmt: skip
"""Rankings of units without a dictionary."""
BY_MODES = (
    "act_grad_modes", "layer_path_modes", "ablation_modes", "act_grad_positions",
    "layer_path_positions", "flow_modes", "activation_parts", "log_odds_parts",
    "modes_here",
)  # fmt: skip
BESIDE = ("class_mean_parts", "units_here", "random")
"""The same edits without learnt modes: class means as atoms; units by this input's own numbers."""
CHOSEN = {
    "chosen_modes": ("act_grad_modes", "layer_path_modes", "ablation_modes", "act_grad_positions",
                     "layer_path_positions", "flow_modes"),
    "chosen_units": FREE,
}  # fmt: skip
"""The ranking that is most selective at a site on one half of the images, judged on the other."""
PAIRS = (
    ("modes_here", "units_here"), ("chosen_modes", "chosen_units"),
    ("act_grad_modes", "act_grad_difference"), ("layer_path_modes", "layer_path_difference"),
    ("ablation_modes", "ablation_difference"), ("activation_parts", "class_mean_parts"),
)  # fmt: skip
"""An edit by modes, and the same without a learnt dictionary."""
N_LABELS = 10
OTHERS = {"resnet20": 3, "mobilenet": 2}
"""Other labels whose edits an image is judged under."""
ROWS = {"resnet20": 1000, "mobilenet": 120}
STEPS = {"resnet20": 600, "mobilenet": 150}
LATER = {
    "model.blocks.10": "model.blocks.13", "model.blocks.13": "model.blocks.16",
    "layer2.1": "layer3.0", "layer3.0": "layer3.1", "layer3.1": "layer3.2",
}  # fmt: skip
"""Where flow goes to."""
N_BOOTSTRAP = 1000
LEAST = 0.2
"""Correlation with a label above which flow into a mode counts for it, as in the paper."""
AT_ONCE = {"resnet20": 64, "mobilenet": 8}
Weights = Callable[[int, int], Tensor]
"""Of an image and a label: what is taken away, [dose, unit]."""


@dataclass(frozen=True)
class Place:
    """A site of a network, with what was collected there."""

    case: known.Case
    site: str

    @cached_property
    def stores(self) -> dict[str, Store]:
        """Contributions by every method, collected once for all sites of the network."""
        return stores(self.case)

    @cached_property
    def labels(self) -> Tensor:
        """Labels of the images."""
        return self.case.labels

    @cached_property
    def n_units(self) -> int:
        """Units of the site."""
        return self.stores["paper"].info(self.site).n_units

    def rows(self, method: str, site: str | None = None, quantity: str = "contribution") -> Tensor:
        """Sums over positions, [image, unit]."""
        return self.stores[method].matrix(site or self.site, quantity=quantity, sign="sum")


def case_of(name: str) -> known.Case:
    """A network of the table beside this one, with its images."""
    case = known.CASES[name]()
    sites = [site for site in LATER if site in case.sites]
    n = ROWS[name]
    return replace(case, images=case.images[:n], labels=case.labels[:n], sites=tuple(sites))


def stores(case: known.Case) -> dict[str, Store]:
    """Collect what is not there; those behind which flow goes have later sites, too."""
    found, everywhere = {}, tuple(dict.fromkeys([*case.sites, *map(LATER.get, case.sites)]))
    for name, (method, target) in known.METHODS.items():
        places = {"rows": "positions", "keep": 8} if name in ("act_grad", "layer_path") else {}
        found[name] = collect(
            case.model, (case.images, case.labels),
            everywhere if name == "layer_path" else case.sites, method=method, target=target,
            out=FOLDER / case.name / f"{name}.zarr", batch_size=20, progress=False, **places,
        )  # fmt: skip
    return found


def folds(case: known.Case, seed: int) -> Iterator[tuple[Tensor, list[tuple[int, int]]]]:
    """Yield images set aside, and the pairs of image and label to judge among them."""
    n_labels, n_others = int(case.labels.max()) + 1, OTHERS[case.name]
    generator = torch.Generator().manual_seed(seed)
    of_label = [(case.labels == label).nonzero().flatten() for label in range(n_labels)]

    def pairs(images: Tensor, number: int) -> list[tuple[int, int]]:
        found = []
        for image in images.tolist():
            own = int(case.labels[image])
            steps = [0, *(1 + (n_others * (number + image) + k) % (n_labels - 1)
                          for k in range(n_others))]  # fmt: skip
            found += [(image, (own + step) % n_labels) for step in steps]
        return found

    if case.name == "mobilenet":
        for number in range(len(of_label[0])):
            aside = torch.stack([some[number] for some in of_label])
            yield aside, pairs(aside, number)
        return
    aside = torch.cat([some[torch.randperm(len(some), generator=generator)][: len(some) // 2]
                       for some in of_label])  # fmt: skip
    judged = torch.cat([aside[case.labels[aside] == label][:20] for label in range(n_labels)])
    yield aside, pairs(judged, seed)


def seed_of(case: known.Case, seed: int, number: int) -> int:
    """The seed of fits of a fold: of photos the five in turn, so that each pass has them all."""
    return (seed + number) % len(SEEDS) if case.name == "mobilenet" else seed


def modes_of(
    place: Place, method: str, seed: int, aside: Tensor, *, site: str | None = None,
    rows: str = "samples", quantity: str = "contribution",
) -> Modes:  # fmt: skip
    """Fit signed modes to all images but those set aside."""
    store, site = place.stores[method], site or place.site
    matrix = store.matrix(site, quantity=quantity, sign="sum", rows=rows)
    held_out = aside
    if rows == "positions":
        held_out = torch.isin(store.places(site).sample, aside).nonzero().flatten()
    config = TrainConfig(seed=seed, steps=STEPS[place.case.name])
    learner = ThresholdSAE(3 * matrix.shape[1])
    found = fit(learner, matrix, config=config, held_out_rows=held_out).dictionary
    return Modes.build(
        found, store, site, "sum", quantity=quantity, held_out_rows=held_out, rows=rows,
        name=f"{method} {rows}",
    )  # fmt: skip


def by_order(ranking: Ranking, n_units: int) -> Weights:
    """Take the first units of a ranking whole."""
    kept: dict[int, Tensor] = {}

    def weights(image: int, label: int) -> Tensor:
        if label not in kept:
            kept[label] = first(ranking.ranked(label).orders[0], n_units)
        return kept[label]

    return weights


def first(order: Tensor, n_units: int) -> Tensor:
    found = torch.zeros(len(DOSES), n_units)
    for dose, fraction in enumerate(DOSES):
        found[dose, order[: count_units(n_units, fraction)]] = 1
    return found


def shares(modes: Modes, row: Tensor) -> Tensor:
    """What every alive mode answers for at one row, [mode, unit]: features of one input."""
    flat = row[None]
    part = SiteContributions(modes.site, Units("features"), True, flat, flat)
    return Shares.of(modes, part).weights(modes.ids.tolist())


def by_parts(place: Place, modes: Modes, row_of: Callable[[int, int], Tensor]) -> Weights:
    """Take away what the label's modes answer for at each input: the first of them, up to a dose.

    `row_of` gives the row of an image that is encoded, for a label.
    """
    training, labels = ~modes.held_out, place.labels
    factors: dict[int, Tensor] = {}
    parts: dict[bytes, Tensor] = {}

    def shares_of(image: int, label: int) -> Tensor:
        row = row_of(image, label)
        return parts.setdefault(row.numpy().tobytes(), shares(modes, row))

    def of_label(label: int) -> Tensor:
        own = training & (labels == label)
        lead = modes.loadings[own].mean(0) - modes.loadings[training & ~own].mean(0)
        order = lead.argsort(descending=True, stable=True)
        few = own.nonzero().flatten()[:10].tolist()
        taken = torch.stack([shares(modes, row_of(image, label)).mean(1) for image in few]).mean(0)
        before = taken[order].cumsum(0) - taken[order]
        found = torch.zeros(len(DOSES), len(order), dtype=torch.float64)
        for dose, fraction in enumerate(DOSES):
            found[dose, order] = ((fraction - before) / taken[order].clamp(min=1e-12)).clamp(0, 1)
        return found

    def weights(image: int, label: int) -> Tensor:
        if label not in factors:
            factors[label] = of_label(label)
        return (factors[label] @ shares_of(image, label)).clamp(0, 1).float()

    return weights


def by_modes_here(modes: Modes, row_of: Callable[[int, int], Tensor], labels: Tensor) -> Weights:
    """Take the first units by what the label's modes say of this input: sum of loading x atom.

    The label's modes are those that it uses more than others do, on training rows.
    """
    training = ~modes.held_out
    dictionary = modes.encoder
    assert dictionary is not None

    def weights(image: int, label: int) -> Tensor:
        own = training & (labels == label)
        serve = modes.loadings[own].mean(0) > modes.loadings[training & ~own].mean(0)
        loadings = dictionary.encode(row_of(image, label)[None])[0, modes.ids]
        scores = (loadings * serve) @ modes.atoms
        return first(scores.argsort(descending=True, stable=True), len(scores))

    return weights


def towards(case: known.Case, seed: int) -> dict[str, dict[tuple[int, int], Tensor]]:
    """Activation x gradient to the log-odds of the label judged, for every pair, by site."""
    number = 0 if case.name == "mobilenet" else seed
    file = FOLDER / case.name / f"towards-{number}.safetensors"
    pairs = [pair for _, some in folds(case, seed) for pair in some]
    if file.exists():
        return {site: dict(zip(pairs, rows, strict=True)) for site, rows in load_file(file).items()}
    found: dict[str, list[Tensor]] = {site: [] for site in case.sites}
    for start in range(0, len(pairs), 20):
        part = pairs[start : start + 20]
        images = case.images[[image for image, _ in part]]
        labels = torch.tensor([label for _, label in part])
        batch = contribute(case.model, images, case.sites, method=ActGrad(),
                           target=known.LOG_ODDS, labels=labels, prove=not start)  # fmt: skip
        reduced = batch.reduce()
        for site, rows in found.items():
            rows.append(reduced[site].contribution.sum(1))
    save_file({site: torch.cat(parts) for site, parts in found.items()}, file)
    return towards(case, seed)


def flows(place: Place, every: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
    """What goes from every unit into the label's modes at the next site, [image, unit], by fold.

    Of every fold its seed and the images set aside.

    flow_u = sum over positions of h_u d[g . (w h')] / dh_u, with the next site's activation h', its
    gradient g along the layer path to the log-odds, and the share w that modes which go with the
    image's own label answer for there (g and w held fixed).
    """
    case, later = place.case, LATER[place.site]
    a, b = (find_sites(case.model, site)[0] for site in (place.site, later))
    shares_there = []
    for seed, aside in every:
        modes = modes_of(place, "layer_path", seed, aside, site=later)
        training, rows = ~modes.held_out, place.rows("layer_path", later)
        serves = (modes.correlation(split="train") > LEAST).T.double()
        found = torch.zeros_like(rows)
        for image in training.nonzero().flatten().tolist():
            found[image] = (serves[place.labels[image]] @ shares(modes, rows[image])).float()
        shares_there.append(found)
    gradients, splitter = gradient_there(place, b), Splitter(case.model, a, also=[b])
    result = [torch.zeros(len(case.images), place.n_units) for _ in every]
    for start in range(0, len(case.images), 10):
        some = slice(start, start + 10)
        after, there = splitter.at(case.images[some]), list[Tensor]()

        def seen(h: Tensor, there: list[Tensor] = there) -> Tensor:
            there.append(h)
            return h

        h = after.activation.requires_grad_(True)
        with torch.enable_grad():
            after.run(h, {b: seen})
        for share, kept in zip(shares_there, result, strict=True):
            w = (share[some][:, :, None, None] * gradients[some]).to(there[0])
            (v,) = torch.autograd.grad(there[0], h, w, retain_graph=True)
            kept[some] = (h * v).detach().sum((2, 3))
    return result


def gradient_there(place: Place, b: Site) -> Tensor:
    """Mean gradient of the log-odds along the layer path at a site, in full shape."""
    case, file = place.case, FOLDER / place.case.name / f"gradients-{b.key}.safetensors"
    if not file.exists():
        parts, start = [], record_activation(case.model, torch.zeros_like(case.images[:1]), b)
        for first_row in range(0, len(case.images), 20):
            some = slice(first_row, first_row + 20)
            found = contribute(
                case.model, case.images[some], [b], labels=case.labels[some],
                method=IntegratedGradients(steps=10, path="layer"), target=known.LOG_ODDS,
                prove=not first_row,
            )[b.key]  # fmt: skip
            change = found.activation - start
            parts.append(torch.where(change != 0, found.contribution / change, 0.0))
        save_file({b.key: torch.cat(parts)}, file)
    return load_file(file)[b.key]


def edits(place: Place, seed: int | None, number: int, aside: Tensor, some: Tensor | None,
          wanted: Sequence[str]) -> dict[str, Weights]:  # fmt: skip
    """All that is compared, chosen without the images set aside; `some` as from `flows`."""
    case, n_units = place.case, place.n_units
    rows = torch.ones(len(place.labels), dtype=torch.bool)
    rows[aside] = False
    found: dict[str, Weights] = {}
    pairs = towards(case, seed or 0)[place.site]

    def unit(method: str, score: str, **more: Any) -> Ranking:
        return ByUnit(store=place.stores[method], site=place.site, rows=rows, score=score, **more)

    makers: dict[str, Callable[[], Ranking]] = {
        "mean_contribution": lambda: unit("paper", "mean", sign="positive"),
        "contribution_difference": lambda: unit("paper", "difference", sign="positive"),
        "activation_difference": lambda: unit("paper", "difference", quantity="activation"),
        "act_grad_difference": lambda: unit("act_grad", "difference"),
        "act_grad_correlation": lambda: unit("act_grad", "correlation"),
        "layer_path_difference": lambda: unit("layer_path", "difference"),
        "ablation_difference": lambda: unit("ablation", "difference"),
        "random": lambda: RandomUnits(n_units=n_units, n_draws=1, seed=100 * (seed or 0) + number),
    }
    found |= {name: by_order(makers[name](), n_units) for name in makers if name in wanted}
    if "class_mean_parts" in wanted:
        h = place.rows("paper", quantity="activation")
        means = torch.stack([h[rows & (place.labels == label)].mean(0)
                             for label in range(int(place.labels.max()) + 1)])  # fmt: skip
        atoms = Modes.build(import_dictionary(means), place.stores["paper"], place.site, "sum",
                            quantity="activation", held_out_rows=aside)  # fmt: skip
        found["class_mean_parts"] = by_parts(place, atoms, lambda image, label: h[image])
    if "units_here" in wanted:
        found["units_here"] = lambda image, label: first(
            pairs[image, label].argsort(descending=True), n_units
        )
    if seed is None:
        return found
    local, h = place.rows("act_grad"), place.rows("paper", quantity="activation")
    fitted: dict[str, Modes] = {}
    for name in ("act_grad", "layer_path", "ablation"):
        fitted[name] = modes_of(place, name, seed, aside)
        found[f"{name}_modes"] = by_order(ByModeSum(modes=fitted[name]), n_units)
    for name in ("act_grad", "layer_path"):
        if f"{name}_positions" in wanted:
            modes = modes_of(place, name, seed, aside, rows="positions")
            found[f"{name}_positions"] = by_order(ByModeSum(modes=modes), n_units)
    if some is not None:
        own = [rows & (place.labels == label) for label in range(int(place.labels.max()) + 1)]
        scores = torch.stack([some[mine].mean(0) - some[rows & ~mine].mean(0) for mine in own])
        found["flow_modes"] = by_order(ByScores(scores=scores), n_units)
    active = modes_of(place, "paper", seed, aside, quantity="activation")
    found["activation_parts"] = by_parts(place, active, lambda image, label: h[image])

    def own_or_towards(image: int, label: int) -> Tensor:
        return local[image] if bool(rows[image]) else pairs[image, label]

    found["log_odds_parts"] = by_parts(place, fitted["act_grad"], own_or_towards)
    found["modes_here"] = by_modes_here(fitted["act_grad"], own_or_towards, place.labels)
    return found


def measured(
    place: Place, seed: int | None, wanted: Sequence[str], some_folds: range
) -> dict[str, numpy.ndarray]:
    """Which pairs of image and label come out right under every edit and dose, of some folds."""
    case, every = place.case, [*folds(place.case, seed or 0)]
    (site,) = find_sites(case.model, place.site)
    flowing: dict[int, Tensor] = {}
    if "flow_modes" in wanted:
        seeds = [(seed_of(place.case, seed or 0, n), every[n][0]) for n in some_folds]
        flowing = dict(zip(some_folds, flows(place, seeds), strict=True))
    splitter, names = Splitter(case.model, site), list[str]()
    right, plain, pairs, taken = [], [], [], []
    for number in some_folds:
        aside, judged = every[number]
        one = None if seed is None else seed_of(case, seed, number)
        made = edits(place, one, number, aside, flowing.get(number), wanted)
        names = [name for name in (*FREE, *BY_MODES, *BESIDE) if name in made]
        for image in dict.fromkeys(image for image, _ in judged):
            own = int(place.labels[image])
            after = splitter.at(case.images[image : image + 1])
            turning = Turning(after, after.activation, torch.zeros_like(after.activation))
            here = [label for one, label in judged if one == image]
            w = torch.stack([made[name](image, label) for label in here for name in names])
            laid = w.flatten(0, 1)[:, :, None, None].expand(-1, -1, *after.activation.shape[2:])
            output = torch.cat([turning.without(part)
                                for part in torch.split(laid, AT_ONCE[case.name])])  # fmt: skip
            right.append((output.argmax(1) == own).view(len(here), len(names), len(DOSES)))
            taken.append(w.mean(2).view(len(here), len(names), len(DOSES)))
            plain += [bool(after.output[0].argmax() == own)] * len(here)
            pairs += [(image, own, label) for label in here]
    return {
        "names": numpy.array(names), "right": torch.cat(right).numpy(),
        "taken": torch.cat(taken).numpy(), "plain": numpy.array(plain),
        "pairs": numpy.array(pairs),
    }  # fmt: skip


def measure(place: Place, seed: int | None, start: int) -> None:
    """Measure one site and seed, once; of photos what needs no fit has no seed (None).

    A file holds what one call of a few minutes can do: of photos two folds, from `start`.
    """
    leave_one_out = place.case.name == "mobilenet"
    free = (*FREE, "class_mean_parts", "units_here")
    fits = (*(name for name in BY_MODES if not leave_one_out or name != "act_grad_positions"),
            "random")  # fmt: skip
    wanted = free if seed is None else fits if leave_one_out else (*free, *fits)
    name = f"{place.site}-{'free' if seed is None else seed}-{start}.npz"
    file, started = FOLDER / place.case.name / name, time.process_time()
    if file.exists():
        return
    found = measured(place, seed, wanted, range(start, start + 2) if leave_one_out else range(1))
    with file.with_suffix(".part").open("wb") as stream:
        numpy.savez_compressed(stream, seconds=time.process_time() - started, **found)
    file.with_suffix(".part").rename(file)
    print(file.name, f"{time.process_time() - started:.0f} s of processor", flush=True)


def read_part(folder: Path, name: str) -> dict[str, Any]:
    """All folds of one site and seed: right and taken [pair, name, dose]."""
    parts = [dict(numpy.load(file)) for file in sorted(folder.glob(f"{name}-*.npz"))]
    whole: dict[str, Any] = {
        key: numpy.concatenate([part[key] for part in parts])
        for key in ("right", "taken", "plain", "pairs")
    }
    return {**whole, "names": parts[0]["names"], "seconds": sum(float(p["seconds"]) for p in parts)}


def read(case_name: str, site: str) -> dict[str, Any]:
    """Results at a site, for every seed: right and taken [pair, name, dose], plain, pairs."""
    folder = FOLDER / case_name
    parts = [read_part(folder, f"{site}-{one}") for one in range(PASSES[case_name])]
    if case_name == "mobilenet":
        once = read_part(folder, f"{site}-free")
        for part in parts:
            at = {tuple(pair): n for n, pair in enumerate(once["pairs"].tolist())}
            rows = [at[tuple(pair)] for pair in part["pairs"].tolist()]
            for key in ("right", "taken"):
                part[key] = numpy.concatenate([once[key][rows], part[key]], 1)
            part["names"] = numpy.concatenate([once["names"], part["names"]])
    found: dict[str, Any] = {
        key: [torch.from_numpy(part[key]) for part in parts]
        for key in ("right", "taken", "plain", "pairs")
    }
    names = [str(name) for name in parts[0]["names"]]
    for chosen, among in CHOSEN.items():
        places = torch.tensor([at for at, name in enumerate(names) if name in among])
        for seed in range(len(parts)):
            right, taken, plain, pairs = (
                found[key][seed] for key in ("right", "taken", "plain", "pairs")
            )
            which = choice_by_half(right[:, places], plain, pairs)
            column = places[which][:, None, None].expand(-1, 1, len(DOSES))
            for key, values in (("right", right), ("taken", taken)):
                found[key][seed] = torch.cat([values, values.gather(1, column)], 1)
        names.append(chosen)
    return {**found, "names": names, "seconds": sum(part["seconds"] for part in parts)}


def choice_by_half(right: Tensor, plain: Tensor, pairs: Tensor) -> Tensor:
    """Of several edits, the one that is most selective on the other half of the images, [pair]."""
    images = list(dict.fromkeys(pairs[:, 0].tolist()))
    of_label: dict[int, list[int]] = {}
    for image in images:
        of_label.setdefault(int(pairs[pairs[:, 0] == image][0, 1]), []).append(image)
    odd = torch.tensor([image for some in of_label.values() for image in some[1::2]])
    half = torch.isin(pairs[:, 0], odd)
    chosen = torch.zeros(len(pairs), dtype=torch.long)
    for mine in (half, ~half):
        relative = curves_of(right[~mine], plain[~mine], pairs[~mine], torch.ones(1, len(pairs)))
        by_label = selectivity(relative.movedim(1, 0).flatten(1, -2), DOSES)
        chosen[mine] = int(by_label.view(N_LABELS, -1).nanmean(0).argmin())
    return chosen


def curves_of(right: Tensor, plain: Tensor, pairs: Tensor, weight: Tensor) -> Tensor:
    """Accuracy relative to the unedited network, [label, own or others, name, draw, dose].

    `right` [pair, name, dose]; `weight` [draw, pair or more], how often a pair is drawn.
    """
    curves, weight = [], weight[:, : len(pairs)]
    for label in range(N_LABELS):
        own = pairs[:, 1] == label
        for mask in (own & (pairs[:, 2] == label), ~own & (pairs[:, 2] == label)):
            edited = torch.einsum("pnd,bp->nbd", right[mask].float(), weight[:, mask])
            curves.append(edited / (weight[:, mask] @ plain[mask].float())[None, :, None])
    return torch.stack(curves).view(N_LABELS, 2, *curves[0].shape).double()


def drawn(of: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Selectivity and gap of every edit as they are and in `N_BOOTSTRAP` resamples, [name, draw].

    Images (within labels), labels and seeds are drawn again, the same for all edits. The gap is
    the largest distance of the others' mean curve to the label's, at the best dose for each edit.
    """
    labels = torch.full((1 + max(int(pairs[:, 0].max()) for pairs in of["pairs"]),), -1)
    for pairs in of["pairs"]:
        labels[pairs[:, 0]] = pairs[:, 1]
    counts, n_labels = resample_counts(labels, N_BOOTSTRAP, 0), N_LABELS
    several = zip(of["right"], of["plain"], of["pairs"], strict=True)
    # By seed, label, own or others, name, draw and dose.
    relative = torch.stack(
        [curves_of(right, plain, pairs, counts[:, pairs[:, 0]]) for right, plain, pairs in several]
    )
    by_label = selectivity(relative.movedim(2, 0).flatten(1, -2), DOSES).view(
        relative.shape[0], n_labels, *relative.shape[3:5]
    )
    weights = torch.einsum("bs,bl->bsl", draw_weights(len(of["right"]), N_BOOTSTRAP, 1),
                           draw_weights(n_labels, N_BOOTSTRAP, 2))  # fmt: skip
    known = (~by_label.isnan()).double()
    mean = torch.einsum("slnb,bsl->nb", by_label.nan_to_num(), weights)
    mean = mean / torch.einsum("slnb,bsl->nb", known, weights)
    target, off = torch.einsum("slonbd,bsl->onbd", relative, weights)
    return mean, (off - target).amax(-1)


def three(values: Tensor) -> list[float]:
    """Value and 95 % interval of resamples [draw], of which the first is the data."""
    return [round(float(values[0]), 4), *(round(float(v), 4) for v in interval(values))]


def verdict(difference: Sequence[float], least_is_best: bool) -> str:
    """Say what a paired difference to another edit means."""
    _, low, high = difference if least_is_best else [-difference[0], -difference[2], -difference[1]]
    return "better" if high < 0 else "worse" if low > 0 else "equal"


def found_at(model: str, site: str) -> dict[str, Any]:
    """Numbers of one site: every edit, and every one that is no ranking against all that are."""
    of = read(model, site)
    rows = {}
    numbers = dict(zip(("selectivity", "gap"), drawn(of), strict=True))
    for at, name in enumerate(of["names"]):
        row: dict[str, Any] = {key: three(values[at]) for key, values in numbers.items()}
        # What an edit takes on average from inputs of its label, and from others, by dose.
        for who, own in (("own", True), ("others", False)):
            row[f"taken_{who}"] = [
                round(float(v), 3) for v in torch.stack([
                    taken[(pairs[:, 1] == pairs[:, 2]) == own, at].double().mean(0)
                    for taken, pairs in zip(of["taken"], of["pairs"], strict=True)
                ]).mean(0)
            ]  # fmt: skip
        rows[name] = row
        if name in FREE:
            continue
        for key, values in numbers.items():
            against = {}
            for other in FREE:
                difference = three(values[at] - values[of["names"].index(other)])
                against[other] = [*difference, verdict(difference, key == "selectivity")]
            row[f"{key}_minus"] = against
    for one, other in PAIRS:
        if {one, other} <= set(of["names"]):
            a, b = (of["names"].index(name) for name in (one, other))
            for key, values in numbers.items():
                rows[one][f"{key}_minus_{other}"] = three(values[a] - values[b])
    return {"model": model, "site": site, "edits": rows, "seconds": round(of["seconds"]),
            "images": len({int(i) for p in of["pairs"] for i in p[:, 0]})}  # fmt: skip


def table(sites: Sequence[Mapping[str, Any]], key: str) -> str:
    """Edits by site, with intervals and marks; see docs/benchmarks.md."""
    shown = [str(of["site"]).removeprefix("model.") for of in sites]
    lines = ["| | " + " | ".join(shown) + " |", "|---" * (len(sites) + 1) + "|"]
    for name in (*FREE, "chosen_units", *BY_MODES, "chosen_modes", *BESIDE):
        cells = []
        for of in sites:
            if (row := of["edits"].get(name)) is None:
                cells.append("-")
                continue
            verdicts = {one[-1] for one in row.get(f"{key}_minus", {}).values()}
            mark = " ▽" if "worse" in verdicts else " ▲" if verdicts == {"better"} else ""
            value, low, high = row[key]
            cells.append(f"{value:.2f} ({low:.2f} to {high:.2f}){mark}")
        title = f"**`{name}`**" if name in (*BY_MODES, "chosen_modes") else f"`{name}`"
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def twins(sites: Sequence[Mapping[str, Any]]) -> str:
    """Paired differences in selectivity of edits by modes to the same without a dictionary."""
    shown = [str(of["site"]).removeprefix("model.") for of in sites]
    lines = ["| | " + " | ".join(shown) + " |", "|---" * (len(sites) + 1) + "|"]
    for one, other in PAIRS:
        key, cells = f"selectivity_minus_{other}", []
        for of in sites:
            value, low, high = of["edits"][one][key]
            cells.append(f"{value:.3f} ({low:.3f} to {high:.3f})")
        lines.append(f"| `{one}` - `{other}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def publish() -> None:
    """Write the numbers and the tables of all sites that are measured, here or before."""
    places = [(name, site) for name in ROWS for site in case_of(name).sites]
    last = {"resnet20": "4-0", "mobilenet": "0-0"}
    file = RESULTS / "control_edits.json"
    before = json.loads(file.read_text())["sites"] if file.exists() else []
    known = {(of["model"], of["site"]): of for of in before}
    known |= {
        (n, s): found_at(n, s)
        for n, s in places if (FOLDER / n / f"{s}-{last[n]}.npz").exists()
    }  # fmt: skip
    sites = [known[place] for place in places if place in known]
    what = (
        "selectivity (area under the label's accuracy minus that under others', over the latter; "
        "-1 at best) and gap (others' accuracy less the label's at the best dose; 1 at best), with "
        "95 % intervals: images, labels and seeds drawn again; *_minus: paired differences to each "
        "ranking without a dictionary; taken: mean share of units by dose"
    )
    write("control_edits", {"what": what, "doses": DOSES, "passes": PASSES, "sites": sites})
    images = ", ".join(f"{of['images']} at {of['site'].removeprefix('model.')}" for of in sites)
    parts = [
        f"Images judged: {images}.", f"Selectivity:\n\n{table(sites, 'selectivity')}",
        f"Gap:\n\n{table(sites, 'gap')}",
        "Selectivity, by modes less the same without a dictionary (below 0: modes are better):",
        twins(sites),
    ]  # fmt: skip
    paste("control_edits", "\n\n".join(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["collect", "measure", "publish"])
    parser.add_argument("--model", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--site", nargs="+")
    parser.add_argument("--seed", nargs="+", type=int, help="of ResNet-20; else the pass")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.what == "publish":
        publish()
        return
    for name in args.model:
        case = case_of(name)
        if args.what == "collect":
            stores(case)
            for seed in args.seed or range(PASSES[name]):
                towards(case, seed)
            for site in case.sites:
                place = Place(case, site)
                gradient_there(place, find_sites(case.model, LATER[site])[0])
            continue
        for site in args.site or case.sites:
            place = Place(case, site)
            passes = args.seed or range(PASSES[name])
            for start in range(0, 12, 2) if name == "mobilenet" else (0,):
                for seed in [None, *passes] if name == "mobilenet" else passes:
                    measure(place, seed, start)


if __name__ == "__main__":
    main()
