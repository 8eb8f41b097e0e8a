"""Sources of receptive fields in a known circuit: do shares and signs go to its pathways.

Per seed (of circuit, movie and fit) 2,000 frames and the fields of every fourth. The circuit's own
numbers: fields whose gradient was let through one pathway's interneurons only. Against them modes
of contributions and of activations, single units, clusters of units, and modes with loadings of
other frames, each part given to the pathway whose planted atom its atom is nearest to.

    python benchmarks/field_sources.py [--seeds 5]
"""

import argparse
import json
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, paste, write
from retina_scores import folded
from torch import Tensor

from condec import (
    NMF,
    IntegratedGradients,
    Modes,
    Sum,
    Surprisal,
    ThresholdSAE,
    TrainConfig,
    collect,
    fit,
)
from condec.basis.metrics import correlation_matrix, unit_length
from condec.dictionary import Learner
from condec.retina import (
    FieldSources,
    PartWeights,
    ReceptiveFields,
    cluster,
    field_sources,
    receptive_fields,
)
from condec.retina.models.circuit import PATHWAYS
from condec.retina.sources import FAINT
from condec.store import Store
from condec.testing.retina import PlantedRetina
from retina import spread

SITES = ("relu1", "relu2")
N_UNITS = 8
STEP = 4
LEARNT: dict[str, tuple[str, str, Learner, str]] = {
    "modes of contributions to surprisal, SAE": (
        "surprisal", "contribution", ThresholdSAE(160), "concat"),
    "modes of contributions to the sum, SAE": ("sum", "contribution", ThresholdSAE(160), "concat"),
    "modes of contributions to the sum, NMF of 8": ("sum", "contribution", NMF(8), "positive"),
    "modes of activations, SAE": ("sum", "activation", ThresholdSAE(160), "concat"),
    "modes of activations, NMF of 8": ("sum", "activation", NMF(8), "positive"),
}  # fmt: skip
FIGURES = {
    "error": "share off", "flips": "flips right", "chance": "chance", "held": "held by one part",
    "left": "left over", "parts": "parts",
}  # fmt: skip


def truth(planted: PlantedRetina, fields: ReceptiveFields) -> tuple[Tensor, Tensor]:
    """Share [cell, pathway] and amount [frame, cell, pathway], by detaching other pathways."""
    circuit, fields_of = planted.circuit, []
    for channels in circuit.wiring.interneurons:
        mask = torch.zeros(N_UNITS, 1, 1)
        mask[list(channels)] = 1

        def let_through(_: Any, __: Any, out: Tensor, mask: Tensor = mask) -> Tensor:
            return mask * out + ((1 - mask) * out).detach()

        handle = circuit.relu2.register_forward_hook(let_through)
        fields_of.append([])
        for rows in fields.rows.split(64):
            clips = planted.windows.batch(rows.tolist()).requires_grad_()
            rates = circuit(clips)
            grads = [
                torch.autograd.grad(rates[:, c].sum(), clips, retain_graph=True)[0].flatten(1)
                for c in range(rates.shape[1])
            ]
            fields_of[-1].append(torch.stack(grads, 1))
        handle.remove()
    parts = torch.stack([torch.cat(one) for one in fields_of], 2)  # [frame, cell, pathway, pixel]
    whole = parts.sum(2, keepdim=True)
    moves = (parts * (whole - whole.mean(0))).double().sum((0, 3))
    amount = (parts * whole).double().sum(3) / whole.double().norm(dim=3).clamp(min=1e-30)
    return moves / moves.sum(1, keepdim=True), amount * fields.polarity.double()[..., None]


def by_pathway(found: FieldSources, owner: list[int]) -> tuple[Tensor, Tensor]:
    """Sum the share and the amount over the parts of each pathway."""
    member = torch.nn.functional.one_hot(torch.tensor(owner), len(PATHWAYS)).double()
    parts = slice(0, len(owner))
    return found.share[:, parts] @ member, found.amount[:, :, parts] @ member


def scored(found: FieldSources, owner: list[int], true: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Compare with the circuit's own numbers, over the cells that draw on two pathways."""
    share, amount = by_pathway(found, owner)
    two = (true[0] > 0.01).sum(1) == 2
    apart = (share - true[0]).abs().sum(1)[two] / 2
    right, luck, held = [], [], []
    for cell in two.nonzero().flatten().tolist():
        total = true[1][:, cell].sum(1)
        clear = (total.abs() > FAINT * total.abs().median()).nonzero().flatten()
        at = (total[clear].sign().diff() != 0).nonzero().flatten()
        before, after = clear[at], clear[at + 1]
        sign = total[after].sign()[:, None]
        real = ((true[1][after, cell] - true[1][before, cell]) * sign).argmax(1)
        said = ((amount[after, cell] - amount[before, cell]) * sign).argmax(1)
        right.append(float((said == real).double().mean()))
        luck.append(float((said.roll(len(said) // 2) == real).double().mean()))
        top = int(true[0][cell].argmax())
        mine = [float(found.share[cell, p]) for p, o in enumerate(owner) if o == top]
        held.append(max(mine, default=0.0) / float(true[0][cell, top]))
    return {
        "error": float(apart.mean()), "flips": statistics.mean(right),
        "held": statistics.mean(held), "chance": statistics.mean(luck),
        "left": float(found.share[two, len(owner) :].sum(1).mean()), "parts": len(owner),
    }  # fmt: skip


def modes_of(
    store: Store, site: str, quantity: str, learner: Learner, sign: str, planted: PlantedRetina,
    seed: int,
) -> Modes:  # fmt: skip
    """Fit on the first three quarters."""
    matrix = store.matrix(site, quantity=quantity, sign=sign)
    found = fit(learner, matrix[planted.train], config=TrainConfig(seed=seed))
    return Modes.build(found.dictionary, store, site, sign=sign, quantity=quantity)


def of_seed(seed: int) -> list[dict[str, Any]]:
    """All figures of one circuit."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    planted = PlantedRetina.standard(seed, n_frames=2000)
    circuit, clips = planted.circuit, planted.windows
    fields = receptive_fields(circuit, clips, rows=range(0, len(clips), STEP)).aligned()
    true = truth(planted, fields)
    n, rows = len(fields), []
    rates = planted.recording.responses(16)
    with tempfile.TemporaryDirectory() as folder:
        stores = {
            name: collect(
                circuit, clips, list(SITES), out=Path(folder) / name, target=target,
                method=IntegratedGradients(steps=10), batch_size=128, progress=False,
            )
            for name, target in (("surprisal", Surprisal.fit(rates[planted.train])), ("sum", Sum()))
        }  # fmt: skip
        for site in SITES:
            planted_atoms = planted.atoms(site)
            of_unit = planted_atoms.argmax(0).tolist()
            contributions = stores["sum"].matrix(site, quantity="contribution", sign="sum")
            groups = cluster(correlation_matrix(contributions, contributions), seed=seed).labels
            clusters = {
                f"cluster {k}": (groups == k).nonzero().flatten().tolist()
                for k in range(int(groups.max()) + 1)
            }
            majority = [statistics.mode([of_unit[u] for u in units]) for units in clusters.values()]
            singles = {f"unit {u}": [u] for u in range(N_UNITS)}
            tried: dict[str, tuple[PartWeights, list[int]]] = {
                "single units": (PartWeights.of_groups(singles, N_UNITS, n), of_unit),
                "clusters of units": (PartWeights.of_groups(clusters, N_UNITS, n), majority),
            }
            for name, (store, quantity, learner, sign) in LEARNT.items():
                modes = modes_of(stores[store], site, quantity, learner, sign, planted, seed)
                near = (
                    unit_length(folded(modes.atoms, N_UNITS), 1) @ unit_length(planted_atoms, 1).T
                )
                weights = PartWeights.of_modes(modes, fields.rows, n_modes=len(modes))
                owner = near.argmax(1).tolist()
                tried[name] = weights, owner
                if "surprisal" in name:
                    other = PartWeights(weights.names, weights.values.roll(n // 2, 0))
                    tried[f"{name}, of other frames"] = other, owner
            # Of all at once: what is said of a part depends on no other, only the rest does.
            every = PartWeights(
                tuple(name for weights, _ in tried.values() for name in weights.names),
                torch.cat([weights.values for weights, _ in tried.values()], 1),
            )
            found = field_sources(circuit, clips, site, fields, every)
            start = 0
            for name, (weights, owner) in tried.items():
                mine = slice(start, start := start + len(weights.names))
                amount, share = found.amount[..., mine], found.share[:, mine]
                rest = 1 - share.sum(1, keepdim=True)
                one = FieldSources(
                    weights.names, torch.cat((share, rest), 1), amount, found.rows, found.cells
                )
                rows.append({"seed": seed, "site": site, "what": name} | scored(one, owner, true))
    return rows


def table(rows: list[dict[str, Any]], site: str) -> str:
    """In Markdown: means over seeds with half the width of the 95 % interval."""
    lines = ["| | " + " | ".join(FIGURES.values()) + " |", "|---" * (1 + len(FIGURES)) + "|"]
    for what in dict.fromkeys(row["what"] for row in rows):
        some = [row for row in rows if (row["what"], row["site"]) == (what, site)]
        cells = [spread([float(row[key]) for row in some]) for key in list(FIGURES)[:-1]]
        cells.append(f"{statistics.mean(row['parts'] for row in some):.0f}")
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5, choices=range(1, 6))
    parser.add_argument("--fresh", action="store_true", help="measure seeds again")
    args, file = parser.parse_args(), RESULTS / "field_sources.json"
    there = file.exists() and not args.fresh
    rows = json.loads(file.read_text())["rows"] if there else []
    for seed in range(args.seeds):
        if seed not in {row["seed"] for row in rows}:
            rows += of_seed(seed)
            write("field_sources", {"what": "standard circuit, 2,000 frames", "rows": rows})
    paste("field-sources", "\n\n".join(f"`{site}`:\n\n{table(rows, site)}" for site in SITES))


if __name__ == "__main__":
    main()
