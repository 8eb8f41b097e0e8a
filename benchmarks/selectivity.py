"""Which choice of units is selective: modes, or no dictionary at all.

Real networks, several sites each; units are chosen on one half of the images and judged on the
other (`condec.effects.measure_curves`), ablated and preserved. What is compared:

- without a dictionary: a class's mean minus that of the others, of contributions (the paper's:
  integrated gradients of the largest output, positive parts), of activations, of activation x
  gradient, of the layer path and of exact ablation effects to the label's log-odds; the same
  correlation of single units; random units;
- with one: the best mode of the paper's contributions and of activations; the best mode, and
  all modes by how much more the class uses them, of activation x gradient and of exact ablation
  effects to the label's log-odds.

    python benchmarks/selectivity.py [--model resnet20 mobilenet vit] [--seeds 1] [--first 0]
        [--edits ablate preserve] [--replacements zero]

What is measured takes the place of the same in the last result; the others stay there. A seed is
one of the halves and of the fits.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from measure import PAGE, RESULTS, paste, write

from condec.attribution import ActGrad, IntegratedGradients, UnitAblation
from condec.attribution.targets import Margin, TopK
from condec.dictionary import ThresholdSAE, TrainConfig, fit
from condec.effects import (
    ByMode,
    ByModeSum,
    ByUnit,
    CurveOptions,
    RandomUnits,
    Ranking,
    compare,
    mean_over_labels,
    measure_curves,
    summarise,
)
from condec.models.torchvision import import_torchvision
from condec.modes.modes import Modes
from condec.store.collection import collect
from condec.store.store import Store

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
FRACTIONS = (0.03, 0.06, 0.12, 0.2, 0.35, 0.5)
LOG_ODDS = Margin(against="logsumexp")
METHODS = {
    "paper": (IntegratedGradients(steps=10), TopK(k=1)),
    "act_grad": (ActGrad(), LOG_ODDS),
    "layer_path": (IntegratedGradients(steps=10, path="layer"), LOG_ODDS),
    "ablation": (UnitAblation(), LOG_ODDS),
}
FREE = (
    "mean_contribution", "contribution_difference", "activation_difference",
    "act_grad_difference", "layer_path_difference", "act_grad_correlation",
)  # fmt: skip
"""Rankings without a dictionary; `ORACLE` is another, which needs a pass for every unit."""
ORACLE = "ablation_difference"
MODES = "act_grad_modes"
"""What modes are to show: `ByModeSum` of activation x gradient to the log-odds."""


@dataclass(frozen=True)
class Case:
    """A network, its images, and where it is looked at."""

    name: str
    model: nn.Module
    images: Tensor
    labels: Tensor
    sites: tuple[str, ...]
    fractions: tuple[float, ...] = FRACTIONS


class Grouped(nn.Module):
    """A network whose outputs are log-sum-exps over groups of its labels: superclasses."""

    def __init__(self, model: nn.Module, group_of: Tensor) -> None:
        super().__init__()
        self.model = model
        self.members = [(group_of == g).nonzero().flatten() for g in range(int(group_of.max()) + 1)]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Shape [sample, group]."""
        logits = self.model(x)
        return torch.stack([logits[:, some].logsumexp(1) for some in self.members], 1)


def resnet20() -> Case:
    """CIFAR-10, 2,000 JPEG copies."""
    import numpy

    sys.path.insert(0, str(DATA / "cifar10"))
    from cifar_resnet import load_resnet, preprocess

    kept = numpy.load(DATA / "cifar10" / "test_2000.npz")
    return Case(
        "resnet20",
        load_resnet(DATA / "cifar10" / "resnet20_cifar10.safetensors").eval(),
        preprocess(kept["images"]).float(),
        torch.from_numpy(kept["labels"]).long(),
        ("layer2.1", "layer3.0", "layer3.1"),
    )


def mobilenet() -> Case:
    """120 photos, 12 of each of ten superclasses; the network's outputs grouped by them."""
    import csv

    import numpy
    from PIL import Image

    folder = DATA / "imagenet"
    sys.path.insert(0, str(folder))
    from mobilenet_v2 import load_mobilenet_v2, preprocess

    rows = list(csv.DictReader((folder / "photos.csv").read_text().splitlines()))
    images = numpy.stack(
        [numpy.asarray(Image.open(folder / "photos" / row["file"]).convert("RGB")) for row in rows]
    )
    names = sorted({row["superclass"] for row in rows})
    known = json.loads((folder / "superclasses.json").read_text())
    coarse = [known["coarse_names"][number] for number in known["coarse_of_class"]]
    # All other labels are one more output, of which there is no photo.
    group = torch.tensor([names.index(c) if c in names else len(names) for c in coarse])
    model = load_mobilenet_v2(folder / "mobilenet_v2_imagenet.safetensors").eval()
    return Case(
        "mobilenet",
        Grouped(model, group),
        preprocess(images).float(),
        torch.tensor([names.index(row["superclass"]) for row in rows]),
        ("model.blocks.10", "model.blocks.13", "model.blocks.16"),
    )


def vit() -> Case:
    """A vision transformer on handwritten digits: blocks, neurons of an MLP, heads."""
    from safetensors.torch import load_file
    from sklearn.datasets import load_digits

    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    record = json.loads((DATA / "digits" / "vit_digits.json").read_text())
    model = VisionTransformer(**record["constructor_args"])
    model.load_state_dict(load_file(DATA / "digits" / "vit_digits.safetensors"))
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
    return Case(
        "vit",
        model.eval(),
        images,
        torch.from_numpy(digits.target).long(),
        (
            "blocks.1", "blocks.2", "blocks.1.mlp.fc2:input", "blocks.2.mlp.fc2:input",
            "blocks.2.attn.proj:input@heads(4)",
        ),
        (0.03, 0.06, 0.12, 0.25, 0.5),
    )  # fmt: skip


CASES: dict[str, Callable[[], Case]] = {"resnet20": resnet20, "mobilenet": mobilenet, "vit": vit}


def stores(case: Case) -> dict[str, Store]:
    """Contributions by every method, collected once."""
    folder = ROOT / "runs" / "selectivity" / case.name
    return {
        name: collect(
            case.model, (case.images, case.labels), case.sites, method=method, target=target,
            out=folder / f"{name}.zarr", batch_size=50, progress=False,
        )
        for name, (method, target) in METHODS.items()
    }  # fmt: skip


def modes_of(store: Store, site: str, seed: int, **matrix: Any) -> Modes:
    """Modes by the default learner, from one half of the images."""
    rows = store.matrix(site, **matrix)
    config = TrainConfig(seed=seed, split_seed=seed, held_out=0.5)
    report = fit(ThresholdSAE(3 * rows.shape[1]), rows, config=config)
    return Modes.build(report.dictionary, store, site, held_out_rows=report.held_out_rows, **matrix)


def rankings(kept: dict[str, Store], site: str, seed: int) -> tuple[Modes, list[Ranking]]:
    """The paper's modes, and all that is compared."""
    paper, act_grad, ablation = (kept[name] for name in ("paper", "act_grad", "ablation"))
    modes = modes_of(paper, site, seed, sign="positive")
    activations = modes_of(paper, site, seed, quantity="activation", sign="sum")
    local, exact = (modes_of(store, site, seed, sign="sum") for store in (act_grad, ablation))
    rows, n_units = ~modes.held_out, paper.info(site).n_units

    def unit(name: str, store: Store, **more: Any) -> Ranking:
        return ByUnit(store=store, site=site, rows=rows, name=name, **more)

    return modes, [
        ByMode(modes=modes, name="paper"),
        ByModeSum(modes=modes, weight="difference", name="paper_modes"),
        ByMode(modes=activations, name="activation_mode"),
        ByMode(modes=local, name="act_grad_mode"),
        ByModeSum(modes=local, weight="difference", name=MODES),
        ByModeSum(modes=exact, weight="difference", name="ablation_modes"),
        unit("mean_contribution", paper, sign="positive"),
        unit("contribution_difference", paper, sign="positive", score="difference"),
        unit("activation_difference", paper, quantity="activation", score="difference"),
        unit("act_grad_difference", act_grad, score="difference"),
        unit("layer_path_difference", kept["layer_path"], score="difference"),
        unit(ORACLE, ablation, score="difference"),
        unit("act_grad_correlation", act_grad, score="correlation"),
        RandomUnits(n_units=n_units, n_draws=3, seed=seed),
    ]


def measured(case: Case, args: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """For every site, seed, edit and replacement, one row for each ranking."""
    kept = stores(case)
    seeds = range(args.first, args.first + args.seeds)
    for site, seed in itertools.product(args.site or case.sites, seeds):
        modes, every = rankings(kept, site, seed)
        for edit, replacement in itertools.product(args.edits, args.replacements):
            started = time.perf_counter()
            options = CurveOptions(
                rankings=tuple(every), fractions=case.fractions, edit=edit,
                replacement=replacement, seed=seed, batch_size=250,
            )  # fmt: skip
            curves = measure_curves(case.model, (case.images, case.labels), modes, options)
            of = {
                "model": case.name, "site": site, "seed": seed, "edit": edit,
                "replacement": replacement, "seconds": time.perf_counter() - started,
            }  # fmt: skip
            yield [of | row for row in described(curves)]


def described(curves: Any) -> list[dict[str, Any]]:
    """Selectivity of every ranking, and how it stands against all without a dictionary."""
    table = summarise(curves.to_frame())
    verdicts = compare(curves, against=MODES).set_index("ranking")
    found = []
    for name, part in table.groupby("ranking", sort=False):
        values = part["auc_difference"]
        row = {
            "ranking": name, "selectivity": float(values.mean()), "by_label": values.tolist(),
            "area_between": float(part["area_between"].mean()),
            "off_damage": float(part["off_damage"].mean()),
        }  # fmt: skip
        if name != MODES:
            of = verdicts.loc[name]
            row["minus_modes"] = [float(of[key]) for key in ("difference", "low", "high")]
            row["verdict"] = str(of["verdict"])
        found.append(row)
    return found


def together(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """These rows, each in the place of the same in the last result, which keeps its others."""
    file = RESULTS / "selectivity.json"
    earlier = json.loads(file.read_text())["rows"] if file.exists() else []
    keys = ("model", "site", "edit", "replacement", "ranking", "seed")
    known = {tuple(row[key] for key in keys): row for row in [*earlier, *rows]}
    return list(known.values())


def keep(rows: Sequence[dict[str, Any]]) -> None:
    """Put rows into the result."""
    what = (
        "selectivity (area under target minus that under off-target, over that under off-target) "
        "of units chosen on one half of the images, on the other; means over labels; lower is "
        "better when units are ablated, higher when they are preserved"
    )
    write("selectivity", {"what": what, "rows": together(rows)})


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown, one for each model, edit and replacement."""
    kinds = sorted({(row["model"], row["edit"], row["replacement"]) for row in rows})
    kinds.sort(key=lambda kind: list(CASES).index(kind[0]))
    parts = []
    for model, edit, replacement in kinds:
        kind = {"model": model, "edit": edit, "replacement": replacement}
        some = [row for row in rows if kind.items() <= row.items()]
        what = "selectivity" if edit == "ablate" else "area between the curves"
        parts.append(f"`{model}`, {edit}, by {replacement}, {what}:\n\n{table(some, edit)}")
    return "\n\n".join(parts)


def table(rows: Sequence[dict[str, Any]], edit: str) -> str:
    """Rankings by site, means over seeds; where units are ablated, what is beyond chance is marked.

    Where units are preserved the off-target area comes near 0, and a ratio to it says little.
    """
    sites = sorted({row["site"] for row in rows})
    names = list(dict.fromkeys(row["ranking"] for row in rows))
    shown = [site.removeprefix("model.") for site in sites]
    lines = ["| | " + " | ".join(shown) + " |", "|---" * (len(sites) + 1) + "|"]
    for name in names:
        cells = []
        for site in sites:
            here = [row for row in rows if row["site"] == site and row["ranking"] == name]
            value = statistics.mean(
                row["selectivity" if edit == "ablate" else "area_between"] for row in here
            )
            verdicts = {row.get("verdict", "") for row in here} if edit == "ablate" else {""}
            mark = {"better": " ▲", "worse": " ▽"}.get(verdicts.pop() if len(verdicts) == 1 else "")
            cells.append(f"{value:.2f}{mark or ''}")
        title = f"**`{name}`**" if name == MODES else f"`{name}`"
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_intervals(rows: Sequence[dict[str, Any]], model: str = "resnet20") -> str:
    """Rankings by site with 95 % intervals over labels, for the page on control."""
    kinds = {
        "ablate": "Ablate: (own - others) / others, -1 at best",
        "preserve": "Preserve: (own - others) / (own + others), 1 at best",
    }
    parts = []
    for edit, what in kinds.items():
        kind = {"model": model, "edit": edit, "replacement": "zero", "seed": 0}
        some = [row for row in rows if kind.items() <= row.items()]
        sites = sorted({row["site"] for row in some})
        lines = [f"| {what} | " + " | ".join(sites) + " |", "|---" * (len(sites) + 1) + "|"]
        for name in dict.fromkeys(row["ranking"] for row in some):
            cells = [
                _with_interval(row["by_label"], edit)
                for site in sites
                for row in some
                if (row["site"], row["ranking"]) == (site, name)
            ]
            title = f"**`{name}`**" if name == MODES else f"`{name}`"
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _with_interval(by_label: Sequence[float], edit: str) -> str:
    """Mean over labels, labels drawn again; of s = (T - O) / O, or (T - O) / (T + O)."""
    selectivity = torch.tensor(by_label, dtype=torch.float64)
    # O comes near 0 where all else is preserved badly, and a mean of ratios to it says nothing.
    bounded = selectivity / (selectivity + 2)
    mean, low, high = mean_over_labels(selectivity if edit == "ablate" else bounded).tolist()
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--site", nargs="+", help="only these sites of the model")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first seed")
    parser.add_argument("--edits", nargs="+", default=["ablate", "preserve"])
    parser.add_argument("--replacements", nargs="+", default=["zero"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--publish", action="store_true", help="tables of the last result")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.publish:
        # After each part: hours of work must not depend on the last.
        for rows in (rows for name in args.model for rows in measured(CASES[name](), args)):
            keep(rows)
    rows = json.loads((RESULTS / "selectivity.json").read_text())["rows"]
    print(tables(rows))
    paste("selectivity", tables(rows))
    paste("rankings", with_intervals(rows), PAGE.parent / "how-to" / "control.md")


if __name__ == "__main__":
    main()
