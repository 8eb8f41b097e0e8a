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
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from explain_games import N_PLAYERS, game, interactions, rank
from explain_table import page, summary
from measure import RESULTS, paste, write
from rival_maps import PATCHES, patches, recorded, site_maps
from selectivity import mobilenet

import condec
from condec.attribution import Contributions, contribute
from condec.dictionary import NMF, TopKSAE
from condec.explanation import Explanation, Part, SiteExplanation, strongest_units

WORK = Path(__file__).resolve().parents[1] / "runs" / "explain_truth"
SITES = ("blocks.10", "blocks.13")
KINDS = ("nmf", "sae")
METHOD = condec.IntegratedGradients(steps=10, spacing="fitted")
N_MASKS = 128
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


def of_photo(study: Study, number: int) -> dict[str, Any]:
    """Measure one photo."""
    x, draws = study.images[number : number + 1], torch.Generator().manual_seed(number)
    seconds, started = {}, time.process_time()

    def timed(name: str, value: Any) -> Any:
        nonlocal started
        seconds[name], started = time.process_time() - started, time.process_time()
        return value

    found, shown, (label, _) = start_of(study, x)
    record: dict[str, Any] = {"photo": study.names[number], "label": label}
    record["missed"] = timed("missed", missed(study.model, x))
    record["checks"] = timed("checks", [*checks(found, draws)])
    record["games"] = timed("games", [game(study.model, at) for at in sited(found)])
    maps = timed("maps", maps_of(study.model, x, label, found, shown))
    record |= timed("curves", curves(study, x, label, maps, shown, draws))
    print(record["photo"], {k: round(v, 1) for k, v in seconds.items()}, flush=True)
    return record


def start_of(
    study: Study, x: Tensor
) -> tuple[dict[str, Explanation], dict[tuple[str, str], Part], list[int]]:
    """Return explanations by kind, the modes that have maps, and the two classes with most."""
    found = {kind: explained(study.model, x, study.modes[kind]) for kind in KINDS}
    shown = {
        (kind, site): max(found[kind][site].modes, key=lambda part: part.net)
        for kind, site in SHOWN
    }
    return found, shown, found[KINDS[0]].batch.output[0].topk(2).indices.tolist()


def sanity(study: Study, number: int) -> list[dict[str, Any]]:
    """Correlate maps of one photo with those of networks with less order, and of another class."""
    x = study.images[number : number + 1]
    found, shown, (label, other) = start_of(study, x)
    before = maps_of(study.model, x, label, found, shown)
    ways = {name: (model, label) for name, model in study.shuffled.items()}
    rows = []
    for name, (model, of) in (ways | {"other class": (study.model, other)}).items():
        after = maps_of(model, x, of, None, shown, study.modes)
        rows += [
            {"way": name, "of": key[0], "map": key[1], "rank": rank(values, after[key])}
            for key, values in before.items()
        ]
    return rows


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


def kept(name: str, make: Callable[[], Any]) -> Any:
    """Return what was measured before under a name, or is now."""
    file = WORK / f"{name}.json"
    if not file.exists():
        half = file.with_suffix(".half")
        half.write_text(json.dumps(make()))
        half.replace(file)
    return json.loads(file.read_text())


def measure_all(n_photos: int, n_sane: int) -> None:
    """Measure what is not there yet."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    case = mobilenet()
    names = [f"{number:03d}" for number in range(len(case.labels))]
    study = Study(case.model.model.requires_grad_(False), case.images, names)
    WORK.mkdir(parents=True, exist_ok=True)
    draws = torch.Generator().manual_seed(0)
    for place, number in enumerate(torch.randperm(len(names), generator=draws)[:n_photos].tolist()):
        kept(names[number], partial(of_photo, study, number))
        if place < n_sane:
            kept(f"{names[number]}-sanity", partial(sanity, study, number))
    store = condec.collect(
        case.model, (case.images, case.labels), f"model.{SITES[1]}", method=METHOD,
        target=condec.Predicted(), batch_size=8, out=WORK / "grouped",
    )  # fmt: skip
    interactions(case.model, case.images, case.labels, store, kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=120)
    parser.add_argument("--sanity", type=int, default=24, help="photos of the sanity checks")
    parser.add_argument("--publish", action="store_true", help="tables of what was measured so far")
    given = parser.parse_args()
    if not given.publish:
        measure_all(given.photos, given.sanity)
    rows = [json.loads(file.read_text()) for file in sorted(WORK.glob("[0-9][0-9][0-9].json"))]
    for row in rows:
        if (file := WORK / f"{row['photo']}-sanity.json").exists():
            row["sanity"] = json.loads(file.read_text())
    pairs = [json.loads(file.read_text()) for file in sorted(WORK.glob("interactions-*.json"))]
    what = (__doc__ or "").partition("\n")[0]
    write("explain_truth", {"what": what, **summary(rows, pairs)})
    paste("explain_truth", page(json.loads((RESULTS / "explain_truth.json").read_text())))


if __name__ == "__main__":
    main()
