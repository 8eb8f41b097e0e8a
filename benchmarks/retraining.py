"""Which modes return when a network is trained again: the digits network, five seeds.

    python benchmarks/retraining.py [seeds]

NMF modes of contributions at every site, 32 at most. *Seeds of the network*: the network is
trained again. *Seeds of the fit*: the same network, fitted again. *Untrained*: against random
weights. A mode returns where its partner by loadings on the same inputs is more than chance.
"""

import sys
import tempfile
import warnings
from itertools import combinations
from pathlib import Path

import numpy as np

import condec
from condec.dictionary import NMF, TrainConfig, fit
from condec.models import digits
from condec.modes import Modes, same_families
from condec.modes.families import partners

SITES = ("block1", "block2", "block3", "block4")
OPTIONS = {"method": condec.IntegratedGradients(steps=6), "target": condec.Predicted(),
           "progress": False}  # fmt: skip


def modes_of(store: condec.Store, seed: int) -> list[Modes]:
    """Fit every site."""
    made = []
    for info in store.infos:
        learner = NMF(min(32, info.n_units))
        report = fit(learner, store.rows(info.site), config=TrainConfig(seed=seed))
        made.append(Modes.build(report.dictionary, store, info.site))
    return made


def returning(one: Modes, other: Modes) -> tuple[float, float]:
    """Return the share of modes with a partner above chance, and their median correlation."""
    found = partners(one.loadings, other.loadings)
    values = [float(found.between[pair]) for pair in found.counted]
    return len(values) / len(one), float(np.median(values)) if values else float("nan")


def main() -> None:
    """Train, collect, fit, and print a table."""
    warnings.simplefilter("ignore")  # of modes that are dead, and of descents that were stopped
    n_seeds = int([*sys.argv[1:], "5"][0])
    data = condec.load_data("digits")
    model = condec.load_model("digits").model
    images, labels = digits._training_half()
    with tempfile.TemporaryDirectory() as folder:
        networks = []
        for seed in range(n_seeds):
            model.load_state_dict(digits.trained(images, labels, seed=seed))
            store = condec.collect(model, data, SITES, out=Path(folder) / f"s{seed}", **OPTIONS)
            networks.append(modes_of(store, 0))
            if not seed:
                again = [networks[0], *(modes_of(store, fit_seed) for fit_seed in (1, 2, 3, 4))]
                twin = condec.collect_twin(
                    condec.RandomWeights(), model, data, SITES, out=Path(folder) / "t", **OPTIONS
                )
                untrained = modes_of(twin, 0)
            print(f"seed {seed} done", flush=True)
        groups = {
            "seeds of the network": list(combinations(networks, 2)),
            "seeds of the fit": list(combinations(again, 2)),
            "untrained": [(one, untrained) for one in networks],
        }
        for name, pairs in groups.items():
            for at, site in enumerate(SITES):
                values = np.array([returning(one[at], other[at]) for one, other in pairs])
                share, middle = np.nanmean(values, axis=0)
                print(f"{name} | {site} | {share:.0%} return ({values[:, 0].min():.0%} to "
                      f"{values[:, 0].max():.0%}) | correlation {middle:.2f}")  # fmt: skip
            same = [same_families(one, other) for one, other in pairs]
            print(f"{name} | families | adjusted Rand index {np.mean(same):.2f}")


if __name__ == "__main__":
    main()
