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
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from measure import RESULTS, paste, write
from retina_scores import (
    FoundModes,
    best_mode_auroc,
    even_rows,
    gate_auroc,
    sign_attribution,
)

from condec import (
    NMF,
    IntegratedGradients,
    KMeans,
    Logit,
    Sum,
    Surprisal,
    ThresholdSAE,
    TrainConfig,
    collect,
    fit,
)
from condec.attribution.targets import Target
from condec.basis.metrics import correlation_matrix
from condec.data import Inputs
from condec.dictionary import Learner, TopKSAE
from condec.retina import ReceptiveFields, receptive_fields
from condec.retina.fitting import fit_model
from condec.retina.models.circuit import HISTORY, SIZE
from condec.retina.models.network import RetinaLayout, RetinaNetwork
from condec.retina.movies.gated import circuit_recording
from condec.retina.training import RetinaTraining
from condec.testing.retina import PlantedRetina

SITES = ("conv1", "relu1", "conv2", "relu2")
LEARNERS: dict[str, Learner] = {
    "TopKSAE, 16 modes": TopKSAE(16, k=4),
    "ThresholdSAE, 160 modes": ThresholdSAE(160),
    "ThresholdSAE, 160 modes, rows to length 1": ThresholdSAE(160),
    "NMF, 8 modes": NMF(8),
    "k-means, 16 modes": KMeans(16),
}
RECTIFIED = ("relu1", "relu2")
NETWORK = ("TopKSAE, 16 modes", "ThresholdSAE, 160 modes, rows to length 1", "NMF, 8 modes")
QUICK = ("TopKSAE, 16 modes", "NMF, 8 modes")
FIELD_STEP = 2
N_TRAIN_FRAMES = 8000
T_975 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for 95 % intervals, by number of seeds."""


# --- one decomposition --------------------------------------------------------------------------


def prepared(matrix: Tensor, learner: str, train: Tensor) -> Tensor:
    """What the learner is given: without signs, or with rows of length 1 but for faint ones."""
    if learner.startswith("NMF"):
        return matrix.abs()
    return even_rows(matrix, train) if "length 1" in learner else matrix


def scored(
    matrix: Tensor, learner: str, planted: PlantedRetina, fields: ReceptiveFields, seed: int,
    atoms: Tensor | None, cell: int | None,
) -> dict[str, Any]:  # fmt: skip
    """Figures of one decomposition: of all pathways and fields, or of those of one cell.

    `atoms` are the planted ones, None where none are known.
    """
    started, train, held_out = time.perf_counter(), planted.train, planted.held_out
    rows = prepared(matrix, learner, train)
    dictionary = fit(LEARNERS[learner], rows[train], config=TrainConfig(seed=seed)).dictionary
    loadings, gates = dictionary.encode(rows), planted.gates
    found = (
        FoundModes.by_gates(dictionary.atoms, loadings, gates, train)
        if atoms is None
        else FoundModes.by_atoms(dictionary.atoms, loadings, atoms, train)
    )
    chosen = list(range(4))
    if cell is not None:
        fields, chosen = of_cell(fields, cell), list(planted.circuit.wiring.cells[cell])
    signs = sign_attribution(found, fields, planted)
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
    planted: PlantedRetina, model: nn.Module, folder: str, part: str
) -> Iterator[tuple[dict[str, Any], Tensor, int | None]]:
    """What is decomposed and by whom; and the one cell that it is about, if it is."""
    rates = planted.recording.responses(HISTORY)
    cell = next(i for i, pathways in enumerate(planted.circuit.wiring.cells) if len(pathways) > 1)
    targets: dict[str, Target] = {"surprisal": Surprisal.fit(rates[planted.train])}
    if part == "circuit":
        targets |= {"sum of rates": Sum(), "one cell": Logit(cell)}
    for name, target in targets.items():
        store = collect(
            model, planted.windows, list(SITES), out=Path(folder) / name.replace(" ", "_"),
            method=IntegratedGradients(steps=20), target=target, batch_size=128, progress=False,
        )  # fmt: skip
        for site in SITES if part == "circuit" else RECTIFIED:
            for quantity in (
                ("contribution", "activation") if name == "surprisal" else ("contribution",)
            ):
                data = f"contributions to {name}" if quantity == "contribution" else "activations"
                matrix = store.matrix(site, quantity=quantity, sign="concat")
                for learner in learners(part, site, name):
                    what = {"site": site, "data": data, "learner": learner}
                    yield what, matrix, cell if name == "one cell" else None


def learners(part: str, site: str, target: str) -> Sequence[str]:
    """All of them at the rectified sites, fewer elsewhere: what is slow tells nothing new there."""
    if part == "network":
        return NETWORK
    return tuple(LEARNERS) if site in RECTIFIED and target != "one cell" else QUICK


def of_cell(fields: ReceptiveFields, cell: int) -> ReceptiveFields:
    """Fields of one of the cells."""
    place = fields.cells.tolist().index(cell)
    names = ("spatial", "temporal", "strength", "separability")
    kept = {name: getattr(fields, name)[:, [place]] for name in names}
    return replace(fields, **kept, cells=fields.cells[[place]], corners=fields.corners[[place]])


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
            {"seed": seed, **what}
            | scored(
                matrix, what["learner"], planted, fields, seed, planted.atoms(what["site"]), cell
            )
            for what, matrix, cell in decompositions(planted, planted.circuit, folder, "circuit")
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
    config = RetinaTraining(history=HISTORY, epochs=15, batch_size=128, lr=3e-3, seed=seed)
    fitted = fit_model(network, recording, config)
    return fitted.model, {
        "correlation": float(fitted.correlation.mean()),
        "epochs": len(fitted.history),
        "seconds": fitted.seconds,
    }


def units_alike(planted: PlantedRetina, model: nn.Module) -> dict[str, float]:
    """How well some unit of the model follows each interneuron of the circuit, layer by layer.

    For the circuit's unit in the middle of each channel's map: the unit of the model, at any
    place, that correlates with it most on training samples; its correlation on held-out ones.
    Absolute, mean over the 8 channels.
    """
    alike = {}
    for site in RECTIFIED:
        known = maps_of(planted.circuit, planted.windows, site)
        side = known.shape[-1] // 2
        middle, every = known[:, :, side, side], maps_of(model, planted.windows, site).flatten(1)
        best = correlation_matrix(middle[planted.train], every[planted.train]).abs().argmax(1)
        judged = correlation_matrix(middle[planted.held_out], every[planted.held_out][:, best])
        alike[site] = float(judged.diagonal().abs().mean())
    return alike


def maps_of(model: nn.Module, clips: Inputs, site: str) -> Tensor:
    """Activations at one site, [sample, channel, y, x]."""
    kept: list[Tensor] = []
    hook = model.get_submodule(site).register_forward_hook(lambda _, __, out: kept.append(out))
    with torch.no_grad():
        for rows in torch.arange(len(clips)).split(256):
            model(clips.batch(rows))
    hook.remove()
    return torch.cat(kept)


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
    how |= {"alike": units_alike(planted, model), "same_polarity": float(same.float().mean())}
    with tempfile.TemporaryDirectory() as folder:
        return [
            {"seed": seed, "network": how, **what}
            | scored(matrix, what["learner"], planted, fields, seed, None, cell)
            for what, matrix, cell in decompositions(planted, model, folder, "network")
        ]


# --- tables -------------------------------------------------------------------------------------

FIGURES = {
    "cosine": "matched cosine", "auroc": "gate AUROC", "best_mode_auroc": "of the best mode",
    "sign_one_gate": "sign, one gate open", "sign": "sign, all", "sign_chance": "chance",
}  # fmt: skip


def table(rows: Sequence[dict[str, Any]], site: str) -> str:
    """In Markdown: mean over seeds, with half the width of its 95 % interval."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["site"] == site:
            groups.setdefault((row["data"], row["learner"]), []).append(row)
    known = [key for key in FIGURES if not any(math.isnan(row[key]) for row in rows)]
    head = ["", "", *(FIGURES[key] for key in known), "modes"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for (data, learner), some in sorted(groups.items(), key=lambda each: each[0][0], reverse=True):
        cells = [data, learner, *(spread([row[key] for row in some]) for key in known)]
        cells.append(f"{statistics.mean(row['n_modes'] for row in some):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def raw(rows: Sequence[dict[str, Any]]) -> str:
    """How much sites before the rectifier differ from those after it, in words."""
    known = {(r["seed"], r["data"], r["learner"], r["site"]): r for r in rows}
    apart: dict[str, list[float]] = {"contributions": [], "activations": []}
    for (seed, data, learner, site), row in known.items():
        before = known.get((seed, data, learner, site.replace("relu", "conv")))
        if site in RECTIFIED and before is not None:
            apart[data.split()[0]].append(abs(row["auroc"] - before["auroc"]))
    means = ", ".join(f"{statistics.mean(v):.3f} of {name}" for name, v in apart.items() if v)
    return f"Gate AUROC before and after the rectifier, mean difference: {means}."


def spread(values: Sequence[float]) -> str:
    """Mean and half the width of its 95 % interval over seeds."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    half = T_975[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.2f} ± {half:.2f}"


def networks(rows: Sequence[dict[str, Any]]) -> str:
    """How well the networks learnt, in words."""
    known = {row["seed"]: row["network"] for row in rows}
    if not known:
        return ""
    every = list(known.values())
    of = {
        "held-out correlation with the circuit's rates": [one["correlation"] for one in every],
        "fields with the circuit's sign": [one["same_polarity"] for one in every],
        "correlation of the circuit's interneurons with their best unit, layer 1": [
            one["alike"]["relu1"] for one in every
        ],
        "layer 2": [one["alike"]["relu2"] for one in every],
    }
    return f"{len(every)} networks: " + ", ".join(f"{k} {spread(v)}" for k, v in of.items()) + "."


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=tuple(PARTS), action="append")
    parser.add_argument("--seeds", type=int, default=5, choices=range(1, 6))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="measure seeds again")
    args = parser.parse_args()
    for part in args.part or PARTS:
        rows = earlier(part)
        done = set() if args.fresh else {row["seed"] for row in rows}
        seeds = [seed for seed in range(args.seeds) if seed not in done]
        with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
            for ready in as_completed([pool.submit(PARTS[part], seed) for seed in seeds]):
                fresh = ready.result()
                rows = [row for row in rows if row["seed"] != fresh[0]["seed"]] + fresh
                keep(part, rows)
        keep(part, rows)


PARTS = {"circuit": of_circuit, "network": of_network}
FILES = {"circuit": "retina", "network": "retina_network"}


def earlier(part: str) -> list[dict[str, Any]]:
    """Rows of the last result."""
    file = RESULTS / f"{FILES[part]}.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"] if file.exists() else []
    return rows


def keep(part: str, rows: list[dict[str, Any]]) -> None:
    """Into the JSON file and the page."""
    rows.sort(key=lambda row: [row[k] for k in ("seed", "site", "data", "learner")])
    what = "standard circuit, 4,000 frames; a seed is one of circuit, movie and fit"
    write(FILES[part], {"what": what, "rows": rows})
    tables = [f"Layer {site[-1]}, `{site}`:\n\n{table(rows, site)}" for site in RECTIFIED]
    said = networks(rows) if part == "network" else raw(rows)
    paste(f"retina-{part}", "\n\n".join([*tables, said]))


if __name__ == "__main__":
    main()
