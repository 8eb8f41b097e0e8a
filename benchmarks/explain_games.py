"""Modes as players of a game: exact Shapley values and interactions, beside what condec says.

By shapiq. Used by `explain_truth.py`.
"""

import itertools
from collections.abc import Callable
from math import nan
from typing import Any, Final

import numpy as np
import torch
from rival_maps import recorded
from scipy.stats import spearmanr
from torch import Tensor, nn

import condec
from condec.dictionary import NMF
from condec.effects import mode_interactions
from condec.effects.choice import choice_of
from condec.effects.measured import measure
from condec.effects.rankings import atom_scores, descending
from condec.effects.samples import held_out
from condec.explanation import Explanation, SiteExplanation
from condec.network import split_at

N_PLAYERS: Final = 8


def rank(a: Any, b: Any) -> float:
    """Spearman's correlation; 0 where one of both is the same everywhere."""
    a, b = (torch.as_tensor(v).flatten().numpy() for v in (a, b))
    return float(spearmanr(a, b).statistic) if len(a) > 2 and a.std() > 0 < b.std() else 0.0


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


def interactions(
    grouped: nn.Module, images: Tensor, labels: Tensor, store: condec.Store,
    kept: Callable[[str, Callable[[], Any]], Any],
) -> None:  # fmt: skip
    """`mode_interactions` of superclasses beside exact interactions of the same modes and units.

    `store` is of one site; `kept` keeps what was measured, by superclass.
    """
    from shapiq import ExactComputer

    data, site = (images, labels), store.sites[0]
    config = condec.TrainConfig(held_out=0.5, seed=0)
    report = condec.fit(NMF(n_modes=16), store.matrix(site), config=config)
    modes = condec.Modes.build(report.dictionary, store, site, held_out_rows=report.held_out_rows)
    samples = held_out(data, modes)
    choice = choice_of("benchmark", modes, "ablate", "zero", 0.05)

    def of_label(label: int) -> dict[str, Any]:
        rows_of = modes.loadings[labels == label].mean(0).argsort(descending=True)[:N_PLAYERS]
        ids = modes.ids[rows_of].tolist()
        units = [choice.first(descending(atom_scores(modes, modes.atoms[r]))) for r in rows_of]
        mine = samples.of([label])

        def play(coalitions: np.ndarray) -> np.ndarray:
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
        return {
            "label": label, "n_samples": len(mine), "rank": rank(said, exactly),
            "slope": float(said @ exactly) / float(said @ said),
            "rank_of_pairs_without_shared_units": rank(said[shared], exactly[shared]),
        }  # fmt: skip

    for label in range(int(labels.max()) + 1):
        kept(f"interactions-{label}", lambda label=label: of_label(label))
