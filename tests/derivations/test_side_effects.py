"""Side effects by plain loops without a hook, in float64.

Interactions of modes in a quadratic network, where they are known in closed form; overlap and
its agreement with a hierarchy (a Mantel test) over pairs of labels; steering position by position.
"""

import itertools

import pytest
import torch
from torch import nn

from condec.effects import control_matrix, mode_interactions, steering_curve
from condec.modes.hierarchy import Hierarchy
from condec.modes.modes import Modes
from condec.network.sites import Site
from condec.store.collection import collect

N_LABELS, N_UNITS, N_POSITIONS = 4, 5, 3


class Quadratic(nn.Module):
    """Outputs are quadratic in the units' sums over positions: y = b s + s Q s / 2."""

    def __init__(self, generator):
        super().__init__()
        self.site = nn.Identity()
        shape = (N_LABELS, N_UNITS, N_UNITS)
        form = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.form = form + form.mT
        shape = (N_LABELS, N_UNITS)
        self.slope = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.eval()

    def forward(self, x):
        s = self.site(x).sum(2)
        return s @ self.slope.T + torch.einsum("su,luv,sv->sl", s, self.form, s) / 2


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    generator = torch.Generator().manual_seed(7)
    model = Quadratic(generator)
    x = torch.randn(24, N_UNITS, N_POSITIONS, generator=generator, dtype=torch.float64)
    labels = torch.arange(24) % N_LABELS
    path = tmp_path_factory.mktemp("side_effects") / "s"
    store = collect(model, (x, labels), "site@channels", out=path, progress=False)
    modes = Modes(
        atoms=torch.rand(6, N_UNITS, generator=generator),
        loadings=torch.rand(24, 6, generator=generator), ids=torch.arange(6) + 2,
        held_out=torch.arange(24) >= 12, store=store, site=Site.parse("site@channels"),
        sign="positive", quantity="contribution", n_modes=9,
    )  # fmt: skip
    return model, (x, labels), modes


def first_units(modes, mode, count):
    return sorted(range(N_UNITS), key=lambda u: -float(modes.atoms[mode, u]))[:count]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_interaction_is_what_the_form_says(chain, count):
    """Of sets A and B: what both share, once; and the form between A \\ B and B \\ A.

    Taking out a set changes y by minus all terms with a factor in it. Terms that A and B both
    take are in both single effects, in the pair once: the interaction is their sum.
    """
    model, (x, labels), modes = chain
    pairs = list(itertools.combinations(range(6), 2))
    table = mode_interactions(
        model, (x, labels), modes, fraction=count / N_UNITS, n_bootstrap=1,
        pairs=[(a + 2, b + 2) for a, b in pairs],
    )  # fmt: skip
    logits = table[table["quantity"] == "logit"].set_index(["mode_a", "mode_b", "label"])
    held = modes.held_out
    for a, b in pairs:
        one, two = (set(first_units(modes, mode, count)) for mode in (a, b))
        for label in range(N_LABELS):
            both = []
            for sample in (held & (labels == label)).nonzero().flatten().tolist():
                s = [float(x[sample, u].sum()) for u in range(N_UNITS)]
                taken = sum(float(model.slope[label, u]) * s[u] for u in one & two)
                for u, v in itertools.product(range(N_UNITS), repeat=2):
                    if {u, v} & one and {u, v} & two:
                        taken += float(model.form[label, u, v]) * s[u] * s[v] / 2
                both.append(taken)
            expected = sum(both) / len(both)
            found = logits.loc[(a + 2, b + 2, label), "interaction"]
            assert found == pytest.approx(expected, abs=1e-4)


def test_overlap_and_agreement_pair_by_pair(chain):
    model, data, modes = chain
    matrix = control_matrix(model, data, modes, fraction=2 / N_UNITS)
    groups = ("x", "y", "y", "x")
    found = matrix.agreement(Hierarchy(groups), n_permutations=400)
    values, alike = [], []
    for i, j in itertools.combinations(range(N_LABELS), 2):
        values.append(-(float(matrix.logit[i, j]) + float(matrix.logit[j, i])) / 2)
        alike.append(float(groups[i] == groups[j]))
    assert found.correlation == pytest.approx(pearson(values, alike), abs=1e-9)
    # All orders of four labels, instead of some drawn at random.
    as_high = []
    for order in itertools.permutations(range(N_LABELS)):
        mixed = [
            float(groups[order[i]] == groups[order[j]])
            for i, j in itertools.combinations(range(N_LABELS), 2)
        ]
        as_high.append(pearson(values, mixed) >= found.correlation - 1e-9)
    assert found.p_value == pytest.approx(sum(as_high) / len(as_high), abs=0.08)


def test_steering_position_by_position(chain):
    model, (x, labels), modes = chain
    table = steering_curve(
        model, (x, labels), modes, strengths=(-1.0, 0.7), labels=[2], directions=["atom"]
    )
    atom = modes.best(2).atom.double()
    length = sum(float(v) ** 2 for v in atom) ** 0.5
    for row in table.to_dict("records"):
        outputs = []
        for sample in (modes.held_out & (labels != 2)).nonzero().flatten().tolist():
            h = x[sample].clone()
            for p in range(N_POSITIONS):
                own = sum(float(v) ** 2 for v in x[sample, :, p]) ** 0.5
                for u in range(N_UNITS):
                    h[u, p] += row["strength"] * own * float(atom[u]) / length
            outputs.append(model(h[None])[0])
        outputs = torch.stack(outputs)
        assert row["logit"] == pytest.approx(float(outputs[:, 2].mean()), abs=1e-4)
        predicted = outputs.argmax(1)
        assert row["converted"] == pytest.approx(float((predicted == 2).double().mean()))
        own = labels[modes.held_out & (labels != 2)]
        kept = float((predicted == own).double().mean())
        assert row["own_accuracy"] * row["own_unedited"] == pytest.approx(kept)


def pearson(a, b):
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    both = sum((p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True))
    squares = [sum((p - m) ** 2 for p in v) for v, m in ((a, mean_a), (b, mean_b))]
    return both / (squares[0] * squares[1]) ** 0.5
