"""Modes of a retina whose circuit is known, against its pathways, gates and signs.

Contributions to the surprisal of all cells, to their summed rate and to one cell's rate, and
activations, at the four sites of `standard_circuit`, decomposed by several learners; and the same
for a network that was trained on the circuit's responses. A seed is one of circuit, movie and fit.
Fitted and chosen on the first three quarters of the movie, judged on the last.

    python benchmarks/retina.py [--part circuit|network] [--seeds 5] [--workers 2]

Every seed is written when it is done; seeds that the result has are left out, unless --fresh.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from measure import RESULTS, paste, write

from condec import (
    NMF,
    IntegratedGradients,
    KMeans,
    Logit,
    Store,
    Sum,
    Surprisal,
    ThresholdSAE,
    TrainConfig,
    collect,
    fit,
)
from condec.dictionary import Learner, TopKSAE
from condec.metrics import correlation_matrix
from condec.models.circuit import HISTORY, SIZE
from condec.models.retina import RetinaNetwork
from condec.models.retina_layout import RetinaLayout
from condec.retina import ReceptiveFields, receptive_fields
from condec.retina.circuit import circuit_recording
from condec.retina.fitting import fit_model
from condec.retina.training import RetinaTraining
from condec.testing.retina import (
    FoundModes,
    PlantedRetina,
    best_mode_auroc,
    gate_auroc,
    sign_attribution,
)

SITES = ("conv1", "relu1", "conv2", "relu2")
LEARNERS: dict[str, Learner] = {
    "TopKSAE, 16 modes": TopKSAE(16, k=4),
    "ThresholdSAE, 160 modes": ThresholdSAE(160),
    "ThresholdSAE, 160 modes, rows to length 1": ThresholdSAE(160),
    "NMF, 8 modes": NMF(8),
    "k-means, 16 modes": KMeans(16),
}
QUICK = ("TopKSAE, 16 modes", "NMF, 8 modes")
FLOOR = 0.1
"""Of the root mean square length of rows, added where rows are brought to length 1."""
FIELD_STEP = 2
N_TRAIN_FRAMES = 12000
T_975 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for 95 % intervals, by number of seeds."""


# --- one decomposition --------------------------------------------------------------------------


def prepared(matrix: Tensor, learner: str, train: Tensor) -> Tensor:
    """What the learner is given: without signs, or with rows of length 1 but for faint ones."""
    if learner.startswith("NMF"):
        return matrix.abs()
    if "length 1" not in learner:
        return matrix
    length = torch.linalg.vector_norm(matrix, dim=1, keepdim=True)
    return matrix / (length + FLOOR * length[train].square().mean().sqrt())


def scored(
    matrix: Tensor, learner: str, planted: PlantedRetina, fields: ReceptiveFields, seed: int,
    atoms: Tensor | None, pathways: Sequence[int] = range(4),
) -> dict[str, Any]:  # fmt: skip
    """Figures of one decomposition; `atoms` are the planted ones, None where none are known."""
    started, train, held_out = time.perf_counter(), planted.train, planted.held_out
    rows = prepared(matrix, learner, train)
    dictionary = fit(LEARNERS[learner], rows[train], config=TrainConfig(seed=seed)).dictionary
    loadings, gates = dictionary.encode(rows), planted.gates
    found = (
        FoundModes.by_gates(dictionary.atoms, loadings, gates, train)
        if atoms is None
        else FoundModes.by_atoms(dictionary.atoms, loadings, atoms, train)
    )
    signs = sign_attribution(found, fields, planted)
    chosen = list(pathways)
    return {
        "cosine": float(found.cosine[chosen].mean()),
        "auroc": float(gate_auroc(found, gates, held_out)[chosen].mean()),
        "best_mode_auroc": float(best_mode_auroc(found, gates, train, held_out)[chosen].mean()),
        "sign": signs.right,
        "sign_one_gate": signs.right_one_gate,
        "sign_chance": signs.chance,
        "n_fields": signs.n_fields,
        "n_modes": len(found.size),
        "seconds": time.perf_counter() - started,
    }


def decompositions(
    planted: PlantedRetina, model: nn.Module, folder: str, network: bool
) -> Iterator[tuple[dict[str, Any], Tensor, Sequence[int]]]:
    """What is decomposed, by whom, and which pathways it can know."""
    rates = planted.recording.responses(HISTORY)
    target = Surprisal.fit(rates[planted.train])
    cell, pair = next((i, p) for i, p in enumerate(planted.circuit.wiring.cells) if len(p) > 1)
    every, rectified = tuple(LEARNERS), ("relu1", "relu2")
    stores: dict[str, Store] = {}
    for name, to in {"surprisal": target, "sum of rates": Sum(), "one cell": Logit(cell)}.items():
        if network and name != "surprisal":
            continue
        stores[name] = collect(
            model, planted.windows, list(SITES), out=Path(folder) / name.replace(" ", "_"),
            method=IntegratedGradients(steps=20), target=to, batch_size=128, progress=False,
        )  # fmt: skip
        for site in SITES:
            learners = every if site in rectified and name != "one cell" else QUICK
            matrix = stores[name].matrix(site, sign="concat")
            known = pair if name == "one cell" else range(4)
            for learner in learners:
                yield (
                    {"data": f"contributions to {name}", "site": site, "learner": learner},
                    (matrix),
                    known,
                )
    for site in SITES:
        matrix = stores["surprisal"].matrix(site, quantity="activation", sign="concat")
        for learner in every if site in rectified else QUICK:
            yield {"data": "activations", "site": site, "learner": learner}, matrix, range(4)


def field_rows(planted: PlantedRetina) -> Tensor:
    """Held-out samples at which receptive fields are looked at."""
    return planted.held_out[::FIELD_STEP]


def of_circuit(seed: int) -> list[dict[str, Any]]:
    """All figures of one circuit."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    planted = PlantedRetina.standard(seed)
    fields = receptive_fields(
        planted.circuit, planted.windows, rows=field_rows(planted), crop=None
    ).aligned()
    with tempfile.TemporaryDirectory() as folder:
        return [
            {"part": "circuit", "seed": seed, **what}
            | scored(matrix, what["learner"], planted, fields, seed, planted.atoms(what["site"]), p)
            for what, matrix, p in decompositions(planted, planted.circuit, folder, False)
        ]


# --- a trained network --------------------------------------------------------------------------


def trained(planted: PlantedRetina, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """A network fitted to the circuit's responses to another movie, and how well it predicts."""
    recording = circuit_recording(planted.circuit, N_TRAIN_FRAMES, seed=1000 + seed)
    layout = RetinaLayout(
        n_cells=12, image_shape=(HISTORY, SIZE, SIZE), channels=(8, 8), kernels=(7, 11),
        stack=None, readout="linear", noise=0.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = RetinaNetwork(layout)
    config = RetinaTraining(history=HISTORY, epochs=25, batch_size=128, lr=3e-3, seed=seed)
    fitted = fit_model(network, recording, config)
    return fitted.model, {
        "correlation": float(fitted.correlation.mean()),
        "epochs": len(fitted.history),
        "seconds": fitted.seconds,
    }


def channels_alike(planted: PlantedRetina, model: nn.Module) -> dict[str, float]:
    """For each layer: of every interneuron, the highest correlation over time with a unit.

    Summed over positions, on held-out samples; absolute, mean over the circuit's 8 channels.
    """
    rows = planted.held_out.tolist()
    sums = {
        name: _sums(one, planted.windows.batch(rows))
        for name, one in (("circuit", planted.circuit), ("model", model))
    }
    return {
        site: float(
            correlation_matrix(sums["circuit"][site], sums["model"][site]).abs().amax(1).mean()
        )
        for site in ("relu1", "relu2")
    }


def _sums(model: nn.Module, clips: Tensor) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}

    def keep(site: str) -> Any:
        return lambda module, args, out: kept.__setitem__(site, out.flatten(2).sum(2))

    hooks = [
        model.get_submodule(site).register_forward_hook(keep(site)) for site in ("relu1", "relu2")
    ]
    with torch.no_grad():
        model(clips)
    for hook in hooks:
        hook.remove()
    return kept


def of_network(seed: int) -> list[dict[str, Any]]:
    """All figures of one network; its fields and gates are judged against the circuit's."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    planted = PlantedRetina.standard(seed)
    model, how = trained(planted, seed)
    fields = receptive_fields(model, planted.windows, rows=field_rows(planted), crop=None).aligned()
    true = receptive_fields(planted.circuit, planted.windows, rows=field_rows(planted), crop=None)
    same = (fields.polarity == true.aligned().polarity)[
        true.strength > 0.1 * true.strength.median()
    ]
    how |= {"alike": channels_alike(planted, model), "same_polarity": float(same.float().mean())}
    with tempfile.TemporaryDirectory() as folder:
        return [
            {"part": "network", "seed": seed, "network": how, **what}
            | scored(matrix, what["learner"], planted, fields, seed, None, p)
            for what, matrix, p in decompositions(planted, model, folder, True)
        ]


# --- tables -------------------------------------------------------------------------------------

FIGURES = ("cosine", "auroc", "best_mode_auroc", "sign", "sign_one_gate", "sign_chance")
HEAD = (
    "| | | seeds | matched cosine | gate AUROC, pathway's modes | best mode alone "
    "| sign, share right | one gate open | chance | modes |"
)


def table(rows: Sequence[dict[str, Any]], part: str) -> str:
    """In Markdown: mean over seeds, with half the width of its 95 % interval."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["part"] == part:
            groups.setdefault((row["site"], row["data"], row["learner"]), []).append(row)
    lines = [HEAD, "|---" * 10 + "|"]
    order = {site: place for place, site in enumerate(("relu1", "relu2", "conv1", "conv2"))}
    for (site, data, learner), some in sorted(groups.items(), key=lambda g: order[g[0][0]]):
        cells = [f"`{site}`, {data}", learner, str(len(some))]
        cells += [spread([row[figure] for row in some]) for figure in FIGURES]
        cells.append(f"{statistics.mean(row['n_modes'] for row in some):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Mean and half the width of its 95 % interval over seeds."""
    if any(math.isnan(value) for value in values):
        return ""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    half = T_975[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.2f} ± {half:.2f}"


def networks(rows: Sequence[dict[str, Any]]) -> str:
    """How well the networks learnt, in words."""
    known = {row["seed"]: row["network"] for row in rows if row["part"] == "network"}
    if not known:
        return ""
    every = list(known.values())
    of = {
        "held-out correlation with the circuit's rates": [one["correlation"] for one in every],
        "fields with the circuit's sign": [one["same_polarity"] for one in every],
        "best correlation of the circuit's channels with a unit, layer 1": [
            one["alike"]["relu1"] for one in every
        ],
        "layer 2": [one["alike"]["relu2"] for one in every],
    }
    return f"{len(every)} networks: " + ", ".join(f"{k} {spread(v)}" for k, v in of.items()) + "."


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=("circuit", "network"), default=None)
    parser.add_argument("--seeds", type=int, default=5, choices=range(1, 6))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="measure seeds again")
    args = parser.parse_args()
    file = RESULTS / "retina.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    parts = (args.part,) if args.part else ("circuit", "network")
    jobs = [(part, seed) for part in parts for seed in range(args.seeds)]
    if args.fresh:
        rows = [row for row in rows if (row["part"], row["seed"]) not in jobs]
    done = {(row["part"], row["seed"]) for row in rows}
    with ProcessPoolExecutor(args.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {
            pool.submit(of_circuit if part == "circuit" else of_network, seed): (part, seed)
            for part, seed in jobs
            if (part, seed) not in done
        }
        for ready in as_completed(waiting):
            rows += ready.result()
            keep(rows)
    keep(rows)


def keep(rows: list[dict[str, Any]]) -> None:
    """Into the JSON file and the page."""
    rows.sort(key=lambda row: [row[k] for k in ("part", "seed", "site", "data", "learner")])
    what = "standard circuit, 4,000 frames; a seed is one of circuit, movie and fit"
    write("retina", {"what": what, "rows": rows})
    for part in ("circuit", "network"):
        said = [networks(rows), ""] if part == "network" else []
        if any(row["part"] == part for row in rows):
            paste(f"retina-{part}", "\n".join([*said, table(rows, part)]))


if __name__ == "__main__":
    main()
