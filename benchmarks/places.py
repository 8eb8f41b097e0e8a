"""Modes of whole inputs against modes of places: what each says, by four measures.

NMF with 24 modes of positive contributions (integrated gradients of the largest output, 5 steps),
fitted to one half of the images: of rows that are images, of 16 positions of each, and of all its
positions. A seed draws the halves. Measured on the other half:

- class correlation: of every class's best mode, chosen on fitted images; mean over classes;
- selectivity: of ablating the units that the modes choose for a class (`ByModeSum`), as in
  `benchmarks/selectivity.py`: -1 at best, 0 where all classes suffer alike;
- localisation: share of a mode's place map (responsibility times contribution) that lies in the
  tenth of the positions where it is largest, mean over the three strongest modes of an image;
- stability: mean cosine of modes with their partners in the fits of other seeds.

    python benchmarks/places.py [--model resnet20 mobilenet] [--seeds 3] [--publish]
"""

import argparse
import itertools
import json
import statistics
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from measure import PAGE, RESULTS, paste, write
from selectivity import CASES, Case

from condec.attribution import IntegratedGradients
from condec.dictionary import NMF, TrainConfig, fit, seed_agreement
from condec.effects import ByModeSum, CurveOptions, measure_curves, summarise
from condec.modes import Modes
from condec.store import Store, collect
from condec.store.places import chosen_places

ROOT = Path(__file__).resolve().parents[1]
SITES = {"resnet20": ("layer3.0",), "mobilenet": ("model.blocks.10",)}
IMAGES = {"resnet20": 300, "mobilenet": 120}
N_MODES, KEEP, ALL = 24, 16, 10_000
FEW = f"{KEEP} places"
KINDS = ("images", FEW, "all places")
MEASURES = ("class correlation", "selectivity", "localisation", "stability")


def stores(case: Case) -> dict[str, Store]:
    """What is kept of the images, by kind of rows."""
    folder, data = ROOT / "runs" / "places" / case.name, images_of(case)
    whole = collect(
        case.model, data, SITES[case.name], method=IntegratedGradients(steps=5), batch_size=20,
        out=folder / "all.zarr", rows="positions", keep=ALL, shard_size=40,
    )  # fmt: skip
    return {"images": whole, "all places": whole, FEW: thinned(whole, folder / "few.zarr")}


def images_of(case: Case) -> tuple[Tensor, Tensor]:
    return case.images[: IMAGES[case.name]], case.labels[: IMAGES[case.name]]


def thinned(whole: Store, out: Path) -> Store:
    """Return the store that collecting with `KEEP` gives, of one where all positions are kept."""
    infos = [replace(info, n_kept=min(KEEP, info.n_places)) for info in whole.infos]
    sizes = {"n_samples": whole.n_samples, "shard_size": whole.shard_size}
    store = Store.create(out, recipe=whole.recipe | {"keep": KEEP}, sites=infos, **sizes)
    for index in store.missing():
        rows = whole.read_shard(index)
        for info in infos:
            chosen = chosen_places(info, rows["inputs/id"], whole.recipe["seed"])[0]
            every, at = f"{info.folder}/place_contribution", chosen.long()[..., None]
            rows[every] = rows[every].take_along_dim(at, 1)
            rows[f"{info.folder}/position"] = chosen
        store.write_shard(index, rows)
    return Store.open(out)


def modes_of(store: Store, site: str, kind: str, seed: int) -> Modes:
    """Modes of one half of the images; the same half for every kind of rows."""
    rows: Any = "samples" if kind == "images" else "positions"
    config = TrainConfig(held_out=0.5, split_seed=seed, seed=seed)
    report = fit(NMF(N_MODES), store.matrix(site, rows=rows), config=config)
    return Modes.build(report.dictionary, store, site, rows=rows)


def class_correlation(modes: Modes) -> float:
    """Held-out correlation of every class's best mode on fitted images, mean over classes."""
    best = modes.correlation(split="train").argmax(0, keepdim=True)
    return float(modes.correlation(split="held_out").gather(0, best).mean())


def selectivity(case: Case, modes: Modes) -> float:
    """Mean over classes, units that all modes together choose being ablated."""
    options = CurveOptions(
        rankings=(ByModeSum(modes=modes),), fractions=(0.1, 0.3), edit="ablate",
        n_bootstrap=0, batch_size=100,
    )  # fmt: skip
    curves = measure_curves(case.model, images_of(case), modes, options)
    return float(summarise(curves.to_frame())["auc_difference"].mean())


def localisation(modes: Modes, whole: Store) -> float:
    """Share of place maps in their largest tenth; contributions at all positions are in `whole`."""
    site, encoder = modes.site, modes.encoder
    assert encoder is not None
    every = whole.matrix(site, rows="positions").view(len(whole), -1, encoder.n_units)
    found = []
    for sample in modes.held_out.nonzero().flatten().tolist():
        here = every[sample]
        rows = here if modes.rows == "positions" else here.sum(0, keepdim=True)
        maps = place_maps(encoder.encode(rows), encoder.atoms, here)
        strongest = maps.sum(0).argsort(descending=True)[:3]
        top = maps[:, strongest].topk(max(1, len(here) // 10), dim=0).values.sum(0)
        found.append(float((top / maps[:, strongest].sum(0)).nanmean()))
    return statistics.mean(found)


def place_maps(loadings: Tensor, atoms: Tensor, contribution: Tensor) -> Tensor:
    """Responsibility z D / sum of z D, times the contribution, summed over units: [place, mode]."""
    total = (loadings @ atoms).clamp(min=1e-30)  # [place, unit], or [1, unit]
    return loadings * ((contribution / total) @ atoms.T)


def measured(case: Case, seeds: range) -> Iterator[dict[str, Any]]:
    """One row for every site, kind of rows and seed."""
    kept = stores(case)
    for site, kind in itertools.product(SITES[case.name], KINDS):
        every = [modes_of(kept[kind], site, kind, seed) for seed in seeds]
        stable = seed_agreement([modes.atoms for modes in every]).tolist()
        for seed, modes, agreement in zip(seeds, every, stable, strict=True):
            row = {
                "model": case.name, "site": site, "rows": kind, "seed": seed,
                "n_positions": modes.store.info(site).n_places, "n_alive": len(modes),
                "class correlation": class_correlation(modes),
                "localisation": localisation(modes, kept["all places"]), "stability": agreement,
            }  # fmt: skip
            if not seed:  # it takes longest
                row["selectivity"] = selectivity(case, modes)
            print(row, flush=True)
            yield row


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown: means over seeds, and the smallest and largest."""
    lines = ["| | rows | " + " | ".join(MEASURES) + " |", "|---" * (2 + len(MEASURES)) + "|"]
    for of in dict.fromkeys((row["model"], row["site"]) for row in rows):
        for kind in KINDS:
            some = [r for r in rows if (r["model"], r["site"], r["rows"]) == (*of, kind)]
            cells = []
            for name in MEASURES:
                values = [row[name] for row in some if name in row]
                ends = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.2f}{ends}")
            place = f"`{of[0]}` `{of[1].removeprefix('model.')}`" if kind == "images" else ""
            lines.append(f"| {place} | {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", choices=list(SITES), default=list(SITES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--publish", action="store_true", help="table of the last result")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if not args.publish:
        file = RESULTS / "places.json"
        earlier = json.loads(file.read_text())["rows"] if file.exists() else []
        for name in args.model:
            made = list(measured(CASES[name](), range(args.seeds)))
            earlier = [row for row in earlier if row["model"] != name] + made
            write("places", {"what": (__doc__ or "").partition("\n")[0], "rows": earlier})
    rows = json.loads((RESULTS / "places.json").read_text())["rows"]
    print(table(rows))
    paste("places", table(rows), PAGE.parent / "how-to" / "places.md")


if __name__ == "__main__":
    main()
