"""Do explanations tell the truth: their shares and maps against what happens in the network.

MobileNetV2 on photos (those come first that a seed draws), at two sites; modes of an NMF and of a
TopK autoencoder, of both signs, fitted to all photos. For every photo:

- checks: `Explanation.check` of the eight strongest modes, of the eight strongest single units and
  of random parts with the same shares (those of the modes, in another order);
- maps: regions of the photo (14 x 14) deleted, and inserted, in the order of each map; the area
  between the two curves, over the whole change; of the strongest mode's own contribution (with the
  mean gradient of its path held) and of the target; three fills;
- sanity: rank correlation of maps before and after weights are shuffled from the top, and with the
  map of the runner-up class;
- games: exact Shapley values and pair interactions (shapiq) of the eight strongest modes, of which
  each is kept or goes back to the baseline, beside their shares;

and over all of them: `mode_interactions` beside exact interactions in the same game. Intervals are
95 % of bootstrap draws of photos. Needs ../shared/data, shapiq and captum.

    python benchmarks/explain_truth.py [--photos 120] [--sanity 24] [--publish]

What was measured is kept in runs/explain_truth, a file a photo, and not measured again.
"""

import argparse
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from explain_table import page, summary
from measure import RESULTS, paste, write
from rival_maps import PATCHES, patches, recorded, site_maps
from selectivity import mobilenet

import condec
from condec.attribution import Contributions, contribute
from condec.dictionary import NMF, TopKSAE
from condec.effects import mode_interactions
from condec.effects.choice import choice_of
from condec.effects.measured import measure
from condec.effects.rankings import atom_scores, descending
from condec.effects.samples import held_out
from condec.explanation import Explanation, Part, SiteExplanation, strongest_units
from condec.network import split_at

WORK = Path(__file__).resolve().parents[1] / "runs" / "explain_truth"
SITES = ("blocks.10", "blocks.13")
KINDS = ("nmf", "sae")
METHOD = condec.IntegratedGradients(steps=10, spacing="fitted")
N_PLAYERS, N_MASKS = 8, 128
KEPT = (14, 59)
"""Regions that are deleted, or inserted, of 196."""
SHOWN = (("nmf", "blocks.10"), ("nmf", "blocks.13"), ("sae", "blocks.10"))
"""Whose modes have maps."""
LAST = "head"
"""Where Grad-CAM and LayerCAM usually are."""
WHOLE = "class"
"""What maps of a class, and not of a mode, go by."""


@dataclass(frozen=True, eq=False)
class Study:
    """The network, its photos, modes of both kinds at both sites, and networks with less order."""

    model: nn.Module
    images: Tensor
    names: list[str]

    @cached_property
    def modes(self) -> dict[str, list[condec.Modes]]:
        """Modes of both sites, by kind."""
        store = condec.collect(
            self.model, self.images, SITES, method=METHOD, target=condec.Predicted(),
            batch_size=8, out=WORK / "store",
        )  # fmt: skip
        found: dict[str, list[condec.Modes]] = {kind: [] for kind in KINDS}
        learners = {"nmf": NMF(n_modes=24), "sae": TopKSAE(n_modes=48, k=8)}
        config = condec.TrainConfig(epochs=200, seed=0)
        for site, (kind, learner) in itertools.product(SITES, learners.items()):
            fitted = condec.fit(learner, store.matrix(site, sign="concat"), config=config)
            found[kind].append(condec.Modes.build(fitted.dictionary, store, site, "concat"))
        return found

    @cached_property
    def shuffled(self) -> dict[str, nn.Module]:
        """Networks whose weights are shuffled from the top down to somewhere."""
        levels = {"classifier": ("classifier",), "blocks.14": ("classifier", "head", "blocks.14",
                  "blocks.15", "blocks.16"), "all": ("",)}  # fmt: skip
        found = {}
        for name, parts in levels.items():
            found[name], draws = deepcopy(self.model), torch.Generator().manual_seed(0)
            for part in parts:
                for values in found[name].get_submodule(part).parameters():
                    order = torch.randperm(values.numel(), generator=draws)
                    values.data = values.flatten()[order].view_as(values).clone()
        return found


def of_photo(study: Study, number: int, *, sane: bool) -> dict[str, Any]:
    """Measure one photo."""
    x, draws = study.images[number : number + 1], torch.Generator().manual_seed(number)
    seconds, started = {}, time.process_time()

    def timed(name: str, value: Any) -> Any:
        nonlocal started
        seconds[name], started = time.process_time() - started, time.process_time()
        return value

    found = {kind: explained(study.model, x, study.modes[kind]) for kind in KINDS}
    output = found[KINDS[0]].batch.output[0]
    label, other = output.topk(2).indices.tolist()
    shown = {
        (kind, site): max(found[kind][site].modes, key=lambda part: part.net)
        for kind, site in SHOWN
    }
    record: dict[str, Any] = {"photo": study.names[number], "label": label}
    record["missed"] = timed("missed", missed(study.model, x))
    record["checks"] = timed("checks", [*checks(found, draws)])
    record["games"] = timed("games", [game(study.model, at) for at in sited(found)])
    maps = timed("maps", maps_of(study.model, x, label, found, shown))
    record |= timed("curves", curves(study, x, label, maps, shown, draws))
    if sane:
        ways = {name: (model, label) for name, model in study.shuffled.items()}
        ways["other class"] = study.model, other
        record["sanity"] = []
        for name, (model, of) in ways.items():
            after = maps_of(model, x, of, None, shown, study.modes)
            record["sanity"] += [
                {"way": name, "of": key[0], "map": key[1], "rank": rank(values, after[key])}
                for key, values in maps.items()
            ]
        timed("sanity", None)
    print(record["photo"], {k: round(v, 1) for k, v in seconds.items()}, flush=True)
    return record


def explained(
    model: nn.Module, x: Tensor, modes: list[condec.Modes], label: int | None = None
) -> Explanation:
    target = condec.Predicted() if label is None else condec.Logit(label)
    return condec.explain(
        model, x, modes, method=METHOD, target=target, n_modes=N_PLAYERS, prove=False
    )


def sited(found: dict[str, Explanation]) -> Iterator[tuple[str, Explanation, SiteExplanation]]:
    for kind, one in found.items():
        for at in one.by_site:
            yield kind, one, at


def rank(a: Any, b: Any) -> float:
    """Spearman's correlation; 0 where one of both is the same everywhere."""
    a, b = (torch.as_tensor(v).flatten().numpy() for v in (a, b))
    return float(spearmanr(a, b).statistic) if len(a) > 2 and a.std() > 0 < b.std() else 0.0


def missed(model: nn.Module, x: Tensor) -> list[dict[str, Any]]:
    """What the quadrature misses, over the change of the target, by spacing of the points."""
    rows = []
    for spacing in ("uniform", "fitted"):
        made: Contributions = contribute(
            model, x, SITES, method=replace(METHOD, spacing=spacing), target=condec.Predicted(),
            prove=False,
        )  # fmt: skip
        rows += [
            {"spacing": spacing, "site": site, "missed": 1 - float(share)}
            for site, share in made.completeness().items()
        ]
    return rows


# ---- shares -------------------------------------------------------------------------------------


def checks(found: dict[str, Explanation], draws: torch.Generator) -> Iterator[dict[str, Any]]:
    """Check modes, single units and random parts, all of one site at a time."""
    for kind, one, at in sited(found):
        weights = [part.weights for part in at.modes]
        orders = [torch.randperm(w.numel(), generator=draws) for w in weights]
        mixed = [w.flatten()[o].view_as(w) for w, o in zip(weights, orders, strict=True)]
        cases = {kind: at, f"random parts, as {kind}": with_parts(at, mixed)}
        if kind == KINDS[0]:
            sizes = at.contribution.abs().sum((1, 2)).argsort(descending=True)[:N_PLAYERS]
            masks = [torch.zeros_like(weights[0]) for _ in sizes]
            for mask, unit in zip(masks, sizes.tolist(), strict=True):
                mask[unit] = 1
            cases["single units"] = with_parts(at, masks)
        for name, case in cases.items():
            checked = replace(one, by_site=(case,)).check()
            for row in checked.summary.to_dict("records"):
                yield row | {"parts": name}


def with_parts(at: SiteExplanation, weights: Sequence[Tensor]) -> SiteExplanation:
    """Return the site with parts of these shares in place of modes."""
    parts = []
    for number, w in enumerate(weights):
        own = w * at.contribution
        adds, takes = float(own.clamp(min=0).sum()), float(own.clamp(max=0).sum())
        parts.append(Part(f"part {number}", None, number, nan, adds, takes, w, own.sum(0)))
    return replace(at, parts=tuple(parts))


def removals(
    model: nn.Module, one: Explanation, at: SiteExplanation
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the game: the target where only some modes are kept, of [coalition, player]."""
    setup, site = one.batch.setup, at.site.name
    assert setup is not None
    with torch.no_grad(), recorded(model, (site,)) as h:
        model(torch.zeros_like(setup.inputs))
    start = h[site]
    after = split_at(model, setup.inputs, at.site)
    moved = torch.stack([p.weights for p in at.modes]).float() * (after.activation - start)

    def play(coalitions: np.ndarray) -> np.ndarray:
        values = []
        for some in np.array_split(coalitions, -(-len(coalitions) // 32)):
            gone = torch.from_numpy(~some.astype(bool)).float()
            changed = after.activation - torch.einsum("vp,pcyx->vcyx", gone, moved)
            with torch.no_grad():
                values.append(after.run(changed)[:, one.prediction])
        return torch.cat(values).double().numpy()

    return play


def game(model: nn.Module, given: tuple[str, Explanation, SiteExplanation]) -> dict[str, Any]:
    """Exact Shapley values and interactions of the modes, beside shares and single removals."""
    from shapiq import ExactComputer

    kind, one, at = given
    n = len(at.modes)
    exact = ExactComputer(removals(model, one, at), n_players=n)
    values = exact("SV", 1)
    pairs = exact("SII", 2)
    v, look = exact.game_values, exact.coalition_lookup
    everyone = tuple(range(n))

    def without(*some: int) -> float:
        return float(v[look[tuple(p for p in everyone if p not in some)]])

    shapley = [float(values[(p,)]) for p in everyone]
    said = [part.net for part in at.modes]
    alone = [without() - without(p) for p in everyone]
    both = [*itertools.combinations(everyone, 2)]
    exactly = [float(pairs[pair]) for pair in both]
    last = [without() - without(a) - without(b) + without(a, b) for a, b in both]
    square = float(np.dot(said, said)) or nan
    return {
        "kind": kind, "site": at.site.key, "n_players": n,
        "shares_rank": rank(said, shapley), "shares_slope": float(np.dot(said, shapley)) / square,
        "removal_rank": rank(alone, shapley), "pairs_rank": rank(last, exactly),
        "interaction_size": float(np.abs(exactly).mean() / np.abs(shapley).mean()),
    }  # fmt: skip


def interactions(study: Study, labels: Tensor, grouped: nn.Module) -> list[dict[str, Any]]:
    """`mode_interactions` of superclasses beside exact interactions of the same modes and units."""
    from shapiq import ExactComputer

    file = WORK / "interactions.json"
    if file.exists():
        return json.loads(file.read_text())  # type: ignore[no-any-return]
    data, rows, site = (study.images, labels), [], f"model.{SITES[1]}"
    store = condec.collect(
        grouped, data, site, method=METHOD, target=condec.Predicted(), batch_size=8,
        out=WORK / "grouped",
    )  # fmt: skip
    config = condec.TrainConfig(held_out=0.5, seed=0)
    report = condec.fit(NMF(n_modes=16), store.matrix(site), config=config)
    modes = condec.Modes.build(report.dictionary, store, site, held_out_rows=report.held_out_rows)
    samples = held_out((study.images, labels), modes)
    choice = choice_of("benchmark", modes, "ablate", "zero", 0.05)
    for label in range(int(labels.max()) + 1):
        rows_of = modes.loadings[labels == label].mean(0).argsort(descending=True)[:N_PLAYERS]
        ids = modes.ids[rows_of].tolist()
        units = [choice.first(descending(atom_scores(modes, modes.atoms[r]))) for r in rows_of]
        mine = samples.of([label])

        def play(coalitions: np.ndarray, units: Any = units, mine: Any = mine,
                 label: int = label) -> np.ndarray:  # fmt: skip
            gone = [
                frozenset(u for p, kept in enumerate(some) if not kept for u in units[p])
                for some in coalitions
            ]
            different = [*dict.fromkeys(gone)]
            made = measure(grouped, mine, [choice.edits(some) for some in different], prove=False)
            values = made.logit.double().mean(1).tolist()
            return np.array([values[different.index(some)] for some in gone])

        exact = ExactComputer(play, n_players=len(ids))("SII", 2)
        pairs = [*itertools.combinations(range(len(ids)), 2)]
        frame = mode_interactions(
            grouped, data, modes, labels=[label], pairs=[(ids[a], ids[b]) for a, b in pairs],
            fraction=0.05, n_bootstrap=1, prove=False,
        )  # fmt: skip
        said = frame[frame["quantity"] == "logit"]["interaction"].to_numpy()
        shared = frame[frame["quantity"] == "logit"]["n_shared"].to_numpy() == 0
        exactly = np.array([float(exact[pair]) for pair in pairs])
        rows.append({
            "label": label, "n_samples": len(mine), "rank": rank(said, exactly),
            "slope": float(said @ exactly) / float(said @ said),
            "rank_of_pairs_without_shared_units": rank(said[shared], exactly[shared]),
        })  # fmt: skip
        print(rows[-1], flush=True)
    file.write_text(json.dumps(rows))
    return rows


# ---- maps ---------------------------------------------------------------------------------------


def maps_of(
    model: nn.Module, x: Tensor, label: int, found: dict[str, Explanation] | None,
    shown: dict[tuple[str, str], Part], modes: dict[str, list[condec.Modes]] | None = None,
) -> dict[tuple[str, str], Tensor]:  # fmt: skip
    """Return maps [y, x] of regions, by what they are of and their name."""
    from captum.attr import IntegratedGradients

    made: dict[tuple[str, str], Tensor] = {}
    again = found is None
    if found is None:
        assert modes is not None
        found = {kind: explained(model, x, modes[kind], label) for kind in KINDS}
    for kind, one, at in sited(found):
        site = at.site.key
        if (kind, site) not in shown:
            continue
        part = shown[kind, site]
        if again:  # the same mode, with the share it has now
            one = replace(one, by_site=(at.showing([part.id], others=False),))
            part = one.by_site[0].modes[0]
        key, w = f"{kind} {site}", part.weights.float()[None]
        made[key, "place map"] = patches(part.places)
        made[key, "input map"] = patches(one.input_maps(site, [part.name]).maps)
        units = strongest_units(part.modes, part.row)[:3]
        paper = condec.mode_map(model, x, site, units, condec.Logit(label), prove=False)
        made[key, "the paper's map"] = patches(paper.total)
        made |= {(key, n): v for n, v in site_maps(model, x, label, site, w).items()}
        if kind == KINDS[0]:
            made[WHOLE, f"place map, {site}"] = patches(at.contribution.sum(0))
    every = torch.ones(1)
    for site in (*SITES, LAST):
        for name, values in site_maps(model, x, label, site, every).items():
            place = f", {site}" if name in ("Grad-CAM", "LayerCAM") else ""
            made.setdefault((WHOLE, name + place), values)
    along = IntegratedGradients(model)
    made[WHOLE, "integrated gradients"] = patches(
        along.attribute(x, target=label, n_steps=METHOD.steps, method="riemann_trapezoid")
    )
    return made


def measures(
    study: Study, x: Tensor, label: int, shown: dict[tuple[str, str], Part]
) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return what measures images: the class's output, and the contributions of modes.

    A mode's own contribution is that of the change of the activation, with its share and the mean
    gradient of the path held.
    """
    path = torch.linspace(0, 1, METHOD.steps + 1).view(-1, 1, 1, 1) * x
    path.requires_grad_()
    with recorded(study.model, SITES) as h:
        output = study.model(path)[:, label].sum()
    gradients = torch.autograd.grad(output, [h[site] for site in SITES])
    mean = dict(zip(SITES, (g.mean(0) for g in gradients), strict=True))
    start = {site: h[site][:1].detach() for site in SITES}
    slopes = {
        f"{kind} {site}": part.weights.float() * mean[site] for (kind, site), part in shown.items()
    }

    def measured(images: Tensor) -> dict[str, Tensor]:
        values: dict[str, list[Tensor]] = {key: [] for key in (WHOLE, *slopes)}
        for some in images.split(25):
            with torch.no_grad(), recorded(study.model, SITES) as h:
                values[WHOLE].append(study.model(some)[:, label])
            for key, slope in slopes.items():
                site = key.split()[1]
                values[key].append(((h[site] - start[site]) * slope).flatten(1).sum(1))
        return {key: torch.cat(each).double() for key, each in values.items()}

    return measured


def curves(
    study: Study, x: Tensor, label: int, maps: dict[tuple[str, str], Tensor],
    shown: dict[tuple[str, str], Part], draws: torch.Generator,
) -> dict[str, Any]:  # fmt: skip
    """Delete and insert regions in the order of every map; see the top of this file."""
    measured = measures(study, x, label, shown)
    fills = fills_of(x, draws)
    # As RISE: random masks, and the mean of what is measured where a region is seen.
    seen = torch.rand(N_MASKS, 1, 8, 8, generator=draws).gt(0.5).float()
    seen = nn.functional.interpolate(seen, (PATCHES, PATCHES), mode="bilinear")
    found_by = measured(blend(x, fills["mean"], seen))
    every = dict(maps)
    for key, values in found_by.items():
        masked = torch.einsum("m,mcyx->yx", values - values.mean(), seen.double())
        every[key, "occlusion"] = masked / seen.double().sum((0, 1))
        every[key, "random"] = torch.rand(PATCHES, PATCHES, generator=draws)
    whole, none = measured(x), {name: measured(fill) for name, fill in fills.items()}
    changes = {key: [float(whole[key] - none[name][key]) for name in fills] for key in whole}
    ends = [0, *KEPT, PATCHES**2]
    rows = []
    for (of, name), values in every.items():
        ties = torch.randperm(PATCHES**2, generator=draws)
        order = ties[values.flatten()[ties].argsort(descending=True, stable=True)]
        places = order.argsort().view(1, PATCHES, PATCHES)
        inside = torch.stack([places < n for n in KEPT])
        keep = torch.cat([~inside, inside]).float()
        areas: dict[str, list[float]] = {key: [] for key in dict.fromkeys((of, WHOLE))}
        for fill, picture in fills.items():
            got = measured(blend(x, picture, keep))
            for key, several in areas.items():
                deleted, inserted = got[key].view(2, -1)
                high, low = whole[key], none[fill][key]
                lines = (torch.cat([low, inserted, high]), torch.cat([high, deleted, low]))
                areas_of = [np.trapezoid(line.numpy(), ends) / PATCHES**2 for line in lines]
                several.append(float(areas_of[0] - areas_of[1]))
        rows += [{"of": of, "map": name, "on": key, "areas": v} for key, v in areas.items()]
    return {"fills": [*fills], "changes": changes, "areas": rows}


def fills_of(x: Tensor, draws: torch.Generator) -> dict[str, Tensor]:
    mean, std = x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True)
    noise = torch.randn(x.shape, generator=draws)
    blurred = torch.from_numpy(gaussian_filter(x.numpy(), (0, 0, 16, 16)))
    return {"mean": mean.expand_as(x), "blur": blurred, "noise": mean + std * noise}


def blend(x: Tensor, fill: Tensor, keep: Tensor) -> Tensor:
    """Return the photo where regions are kept, [version, 1, y, x], and elsewhere the fill."""
    size = x.shape[-1] // PATCHES
    wide = keep.float().repeat_interleave(size, 2).repeat_interleave(size, 3)
    return fill + wide * (x - fill)


def photos(study: Study, numbers: Iterable[int], n_sane: int) -> Iterator[dict[str, Any]]:
    """Give the record of every photo, measured now or before."""
    for place, number in enumerate(numbers):
        file = WORK / f"{study.names[number]}.json"
        if not file.exists():
            made = of_photo(study, number, sane=place < n_sane)
            half = file.with_suffix(".half")
            half.write_text(json.dumps(made))
            half.replace(file)
        yield json.loads(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=120)
    parser.add_argument("--sanity", type=int, default=24, help="photos of the sanity checks")
    parser.add_argument("--publish", action="store_true", help="tables of the last result")
    given = parser.parse_args()
    if not given.publish:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        case = mobilenet()
        labels, model = case.labels, case.model.model.requires_grad_(False)
        names = [f"{number:03d}" for number in range(len(labels))]
        study = Study(model, case.images, names)
        WORK.mkdir(parents=True, exist_ok=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
        rows = [*photos(study, order[: given.photos], given.sanity)]
        made = summary(rows, interactions(study, labels, case.model))
        write("explain_truth", {"what": (__doc__ or "").partition("\n")[0], **made})
    paste("explain_truth", page(json.loads((RESULTS / "explain_truth.json").read_text())))


if __name__ == "__main__":
    main()
