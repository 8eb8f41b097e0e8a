"""Dictionaries side by side, at one site of four networks.

    python benchmarks/judged.py [cifar digits vit stories]

*cifar*: ResNet-20 on 1,000 images of CIFAR-10; *digits*: the network that condec has, on its 897
digits; *vit*: a small vision transformer on 1,797 digits; *stories*: a small language model where a
name is finished, a quotation closed, a pronoun chosen (examples/stories), labels: what came.

Contributions by integrated gradients: our threshold SAE, NMF. Activations: a top-k SAE, NMF, and a
dictionary like a transcoder's: its loadings are read from the activations of an earlier site, its
atoms are in the units of this one (top k, by gradient descent). And single units. A dictionary has
three modes a unit, NMF as many as units, but not more than a quarter, or an eighth, of the training
rows.

Writes results/judged.json; networks that are not named keep what is there.
"""

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import selectivity as known
import torch
from measure import RESULTS, paste, write
from torch import Tensor

import condec
from condec.basis.metrics import r2
from condec.dictionary import NMF, ThresholdSAE, TopKSAE, TrainConfig, fit
from condec.modes import Hierarchy, Modes, Properties
from condec.network import find_sites
from condec.run import Run, config
from condec.store import Store

LIKE_TRANSCODER = "activations, like a transcoder"
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STEPS, K = 1500, 8


@dataclass(frozen=True)
class Case:
    """A network with its data, the site that is judged, and an earlier one."""

    model: torch.nn.Module
    data: Any
    labels: Tensor
    names: Sequence[str] | None
    site: str
    earlier: str
    hierarchy: str = ""


def cifar() -> Case:
    found = known.resnet20()
    images, labels = found.images[:1000], found.labels[:1000]
    return Case(found.model, (images, labels), labels, CIFAR, "layer3.0", "layer2.2", "cifar10")


def digits() -> Case:
    run = Run(config.from_dict({"sites": "block3"}))
    labels = torch.as_tensor(run.inputs.labels)
    return Case(run.loaded.model, run.inputs, labels, None, "block3", "block2")


def vit() -> Case:
    found = known.vit()
    data = (found.images, found.labels)
    return Case(found.model, data, found.labels, None, "blocks.2", "blocks.1")


def stories() -> Case:
    """As many moments as 500 stories have, up to 200 of a kind."""
    sys.path.insert(0, str(known.ROOT / "examples" / "stories"))
    import moments

    moments.MOST = 200
    folder, out = known.DATA / "stories", Path(tempfile.mkdtemp()) / "moments.npz"
    moments.main(str(folder), str(out))
    site = "lm.model.layers.4.mlp.down_proj:input"
    run = Run(config.from_dict({
        "sites": site, "model": {"spec": f"huggingface:{folder}"},
        "data": {"source": f"tokens:{out}"},
    }))  # fmt: skip
    labels = torch.as_tensor(run.inputs.labels)
    return Case(
        run.loaded.model, run.inputs, labels, run.inputs.label_names, site,
        "lm.model.layers.3.mlp.down_proj:input",
    )  # fmt: skip


CASES = {"cifar": cifar, "digits": digits, "vit": vit, "stories": stories}


def like_transcoder(
    store: Store, case: Case, held_out: Tensor, n_modes: int
) -> tuple[Modes, dict[str, float]]:
    """Learn loadings from an earlier site's activations that describe those of this one.

    Return the modes, and R2 and L0 on the held-out rows.
    """
    torch.manual_seed(0)
    read = store.matrix(case.earlier, quantity="activation", sign="concat")
    x, y = read / read.std(), store.matrix(case.site, quantity="activation")
    spread = y.std()
    y, train = y / spread, torch.ones(len(y), dtype=torch.bool)
    train[held_out] = False
    into = torch.nn.Linear(x.shape[1], n_modes)
    out = torch.nn.Linear(n_modes, y.shape[1])
    optimizer = torch.optim.Adam([*into.parameters(), *out.parameters()], lr=3e-3)

    def loadings() -> Tensor:
        pre = into(x).relu()
        return pre * (pre >= pre.topk(K, 1).values[:, -1:])

    for _ in range(STEPS):
        loss = (out(loadings()[train]) - y[train]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        z = loadings()
        alive = (z > 0).any(0)
        quality = {
            "r2": r2(y[held_out], out(z[held_out])),
            "l0": float((z[held_out] > 0).float().sum(1).mean()),
        }
        rows = torch.zeros(len(y), dtype=torch.bool)
        rows[held_out] = True
        modes = Modes(
            atoms=(spread * out.weight.T)[alive].clone(), loadings=z[:, alive].clone(),
            ids=alive.nonzero().flatten(), held_out=rows, store=store,
            site=store.info(case.site).site, sign="positive", quantity="activation",
            n_modes=n_modes, name=LIKE_TRANSCODER,
        )  # fmt: skip
        return modes, quality


def judged(name: str) -> dict[str, Any]:
    """Collect, fit and judge."""
    case, started = CASES[name](), time.process_time()
    sites = find_sites(case.model, [case.earlier, case.site])
    with tempfile.TemporaryDirectory() as folder:
        store = condec.collect(
            case.model, case.data, sites, method=condec.IntegratedGradients(steps=4),
            target=condec.Label() if name == "stories" else condec.Predicted(),
            out=Path(folder) / "store", batch_size=32, progress=False,
        )  # fmt: skip
        settings, made = TrainConfig(steps=STEPS, seed=0), dict[str, Modes]()
        n_units = store.info(case.site).n_units
        most = int(len(store) * (1 - settings.held_out) / 4)
        wide, narrow = min(3 * n_units, most), min(n_units, most // 2)
        learners = {
            "contributions, SAE": (ThresholdSAE(wide), "contribution"),
            "contributions, NMF": (NMF(narrow), "contribution"),
            "activations, top-k SAE": (TopKSAE(wide, k=K), "activation"),
            "activations, NMF": (NMF(narrow), "activation"),
        }
        for title, (learner, quantity) in learners.items():
            report = fit(learner, store.rows(case.site, quantity, "positive"), config=settings)
            made[title] = Modes.build(report.dictionary, store, case.site, quantity=quantity)
            print(title, f"{time.process_time() - started:.0f} s", flush=True)
        held_out = made["contributions, SAE"].held_out.nonzero().flatten()
        made[LIKE_TRANSCODER], quality = like_transcoder(store, case, held_out, wide)
        units = condec.import_dictionary(torch.eye(n_units), encoder="component")
        for quantity in ("contribution", "activation"):
            made[f"single units, {quantity}s"] = Modes.build(
                units, store, case.site, quantity=quantity, held_out_rows=held_out
            )
        hierarchy = Hierarchy.built_in(case.hierarchy, case.names) if case.hierarchy else None
        properties = Properties.of_labels(store.labels, case.names, hierarchy)
        table = condec.judge(made, case.model, case.data, properties=properties, n_random=3)
        for name_of, value in quality.items():  # which only we know
            table.loc[table["name"] == LIKE_TRANSCODER, name_of] = value
    return {
        "site": case.site, "inputs": len(store), "units": n_units, "modes": wide, "nmf": narrow,
        "seconds": time.process_time() - started,
        "rows": json.loads(table.to_json(orient="records")),
    }  # fmt: skip


def page(of: Mapping[str, Mapping[str, Any]]) -> str:
    """In Markdown: a table a network."""

    def number(row: Mapping[str, Any], key: str, form: str = ".2f") -> str:
        value = row.get(key)
        return "" if value is None else format(value, form)

    def interval(row: Mapping[str, Any], key: str) -> str:
        ends = [number(row, f"{key}_{end}") for end in ("low", "high")]
        return number(row, key) + (f" ({ends[0]} to {ends[1]})" if all(ends) else "")

    head = ("| | R2 | L0 | named | labels with a mode | median r | shuffled | ablate | preserve "
            "| CPR | CMD | CPR by size | CMD by size |")  # fmt: skip
    parts = []
    for name, one in of.items():
        sizes = f"{one['units']} units, {one['inputs']:,} inputs; {one['modes']} modes"
        lines = [f"*{name}*: `{one['site']}`, {sizes}, NMF {one['nmf']}.", "", head]
        lines.append("|---" * 13 + "|")
        for row in one["rows"]:
            cells = [
                row["name"].replace("_", " "), number(row, "r2"), number(row, "l0", ".1f"),
                number(row, "named", ".0%"), number(row, "covered", ".0%"),
                number(row, "correlation"), number(row, "correlation_shuffled"),
                interval(row, "ablate"), interval(row, "preserve"),
                *(number(row, key) for key in ("cpr", "cmd", "cpr_by_size", "cmd_by_size")),
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    """Judge the networks that are named, and write the table of all."""
    file = RESULTS / "judged.json"
    found = json.loads(file.read_text())["networks"] if file.exists() else {}
    for name in sys.argv[1:] or CASES:
        found[name] = judged(name)
        found = {one: found[one] for one in CASES if one in found}
        write("judged", {"networks": found})
        paste("judged", page(found))


if __name__ == "__main__":
    main()
