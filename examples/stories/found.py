"""Print what the how-to tells of the two runs, trained weights against random ones.

    condec run examples/stories/run.toml && condec run examples/stories/pronouns.toml
    python examples/stories/found.py

A mode is *of* a kind of moment where that kind has 80 % of its mean loadings: for each kind the
mean is taken over its moments, so that kinds with many moments count no more. Modes of the twin are
fitted in the same way, to the contributions of the same model with random weights.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import condec
from condec.modes import Modes
from condec.run import Run, config
from condec.store import Store

HERE = Path(__file__).parent
OWN, HE = 0.8, "H"


def pairs(name: str) -> Iterator[tuple[str, Modes, Modes]]:
    """Modes of every site, of the trained model and of its twin."""
    run = Run(config.read(HERE / name), progress=False)
    plan, store = run.plan.fit, Store.open(run.folder.twin("random-weights"))
    for modes in run.modes():
        matrix = store.matrix(modes.site, sign=modes.sign)
        learner = plan.learner_for(store.info(modes.site).n_units, len(matrix))
        twin = condec.fit(learner, matrix, config=plan.train)
        yield (
            modes.site.key,
            modes,
            Modes.build(
                twin.dictionary, store, modes.site, modes.sign, held_out_rows=twin.held_out_rows
            ),
        )


def shares(modes: Modes) -> tuple[list[str], torch.Tensor]:
    """The kinds, and the share of every mode's mean loadings that each has, [mode, kind]."""
    of = np.array([one.split("-")[0] for one in modes.store.sample_ids])
    kinds = sorted({*of})
    means = torch.stack([modes.loadings[torch.from_numpy(of == k)].mean(0) for k in kinds], 1)
    return kinds, means / means.sum(1, keepdim=True)


def correlation(loadings: torch.Tensor, he: torch.Tensor, rows: torch.Tensor) -> list[float]:
    """Of every mode with whether He came, on some rows."""
    both = torch.cat([loadings[rows].T, he[rows][None].to(loadings)])
    return [round(float(one), 2) for one in torch.corrcoef(both)[-1, :-1]]


def main() -> None:
    for site, *both in pairs("run.toml"):
        told = []
        for modes in both:
            kinds, share = shares(modes)
            own = [f"{kinds[int(one.argmax())]} {float(one.max()):.2f}" for one in share]
            n = int((share.max(1).values >= OWN).sum())
            right = float((modes.store.predictions == modes.store.labels).double().mean())
            told.append(f"{n} of {len(modes)} of one kind ({', '.join(own)}; right {right:.2f})")
        print(f"{site}: {told[0]}; random weights: {told[1]}")
    names = Run(config.read(HERE / "pronouns.toml"), progress=False).loaded.label_names or ()
    for site, *both in pairs("pronouns.toml"):
        for words, modes in zip(("trained", "random weights"), both, strict=True):
            he = modes.store.labels == names.index(HE)
            r = [
                correlation(modes.loadings, he, rows) for rows in (~modes.held_out, modes.held_out)
            ]
            matrix = modes.store.matrix(site, sign="sum")
            apart = (matrix[he].mean(0) - matrix[~he].mean(0)).abs()
            first, sums = apart.topk(4), [float(matrix[of].sum(1).mean()) for of in (he, ~he)]
            print(
                f"{site}, {words}: r of modes with He {r[0]}, held out {r[1]}; mean sum where He "
                f"{sums[0]:.2f}, where She {sums[1]:.2f}; apart by units {first.indices.tolist()}, "
                f"{float(first.values.sum() / apart.sum()):.0%} of all"
            )


if __name__ == "__main__":
    main()
