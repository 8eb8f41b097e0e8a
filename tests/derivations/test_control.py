"""Edits entry by entry, and a control curve by plain loops without a hook, both in float64.

Melander et al. 2026, section 2 "Ablation" (ablate, preserve, int(n * pct / 100)) and figure
6E ((AUC target - AUC off) / AUC off by the trapezoid rule).
"""

import itertools
import math

import pytest
import torch

from condec.edits import Ablate, Preserve, count_units
from condec.effects import auc_difference, control_curve
from condec.modes.modes import Modes
from condec.network.sites import Site, Units
from condec.store.collection import collect
from condec.testing.models import small_mlp


def unit_of(layout, shape, index, n_heads):
    """Which unit an entry belongs to, from the words of the layouts."""
    match layout:
        case "channels" | "tokens":
            return index[1]
        case "features":
            return index[-1]
        case "heads":
            return index[-1] // (shape[-1] // n_heads)
        case _:
            place = 0
            for size, i in zip(shape[2:], index[2:], strict=True):
                place = place * size + i
            return place


@pytest.mark.parametrize(
    ("layout", "n_heads", "shape"),
    [
        ("channels", None, (2, 6)), ("channels", None, (2, 6, 3, 4)), ("channels", None, (1, 6, 2)),
        ("features", None, (2, 6)), ("features", None, (2, 3, 6)), ("heads", 6, (2, 3, 12)),
        ("tokens", None, (2, 6, 5)), ("positions", None, (2, 3, 2, 3)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("values", [0.0, [0.5, -1.0, 2.0, 3.0, -4.0, 5.5]])
@pytest.mark.parametrize("units", [(0,), (1, 4), (5, 0, 2)])
def test_edits_entry_by_entry(layout, n_heads, shape, values, units):
    activation = torch.randn(shape, dtype=torch.float64)
    ablated, preserved = activation.clone(), activation.clone()
    for index in itertools.product(*(range(size) for size in shape)):
        unit = unit_of(layout, shape, index, n_heads)
        other = values if isinstance(values, float) else values[unit]
        changed = ablated if unit in units else preserved
        changed[index] = other
    site = Site("x", units=Units(layout, n_heads))
    for option, expected in ((Ablate, ablated), (Preserve, preserved)):
        edit = option(site, units=units, replacement=values)
        assert torch.equal(edit.apply(activation), expected)


def test_fraction_to_units_as_in_the_paper():
    for n_units in (16, 64, 100, 768, 2048):
        for percent in range(101):
            assert count_units(n_units, percent / 100) == n_units * percent // 100


def correlation(a, b):
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    top = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    size_a = sum((x - mean_a) ** 2 for x in a) ** 0.5
    size_b = sum((y - mean_b) ** 2 for y in b) ** 0.5
    return top / (size_a * size_b) if size_a and size_b else 0.0


def affine(layer, x):
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    return [
        b + sum(w * v for w, v in zip(row, x, strict=True))
        for row, b in zip(weight, bias, strict=True)
    ]


def predict(model, x, replaced, values):
    """The network written out: some hidden units take other values."""
    hidden = [math.tanh(total) for total in affine(model[0], x)]
    hidden = [values[u] if u in replaced else hidden[u] for u in range(len(hidden))]
    logits = affine(model[4], [math.tanh(total) for total in affine(model[2], hidden)])
    return max(range(len(logits)), key=lambda label: logits[label])


@pytest.mark.parametrize("kind", ["ablate", "preserve"])
@pytest.mark.parametrize("replacement", ["zero", "mean"])
def test_control_curve_by_loops(tmp_path, kind, replacement):
    model = small_mlp(units=7, labels=3).double()
    x = torch.randn(36, 5, dtype=torch.float64)
    with torch.no_grad():
        model[4].bias -= model(x).mean(0)
        labels = (model(x).argmax(1) + (torch.rand(36) < 0.3)) % 3  # some are wrong
    store = collect(model, (x, labels), "1", out=tmp_path / "s", progress=False)
    held_out = torch.arange(36) % 2 == 0
    modes = Modes(
        atoms=torch.randn(4, 7), loadings=torch.rand(36, 4), ids=torch.tensor([0, 3, 4, 9]),
        held_out=held_out, store=store, site=Site("1"), sign="positive",
        quantity="contribution", n_modes=10,
    )  # fmt: skip
    fractions = (0.15, 0.3, 0.6, 0.9)
    table = control_curve(
        model, (x, labels), modes, fractions=fractions, edit=kind, replacement=replacement,
        n_random=2, seed=5, batch_size=5,
    )  # fmt: skip
    areas = auc_difference(table).set_index(["label", "ranking"])

    train = [s for s in range(36) if not held_out[s]]
    test = [s for s in range(36) if held_out[s]]
    label_of = labels.tolist()
    contribution = store.matrix("1").double().tolist()
    hidden = torch.tanh(model[0](x)).tolist()
    values = [0.0] * 7
    if replacement == "mean":
        values = [sum(hidden[s][u] for s in train) / len(train) for u in range(7)]
    generator = torch.Generator().manual_seed(5)
    draws = [torch.randperm(7, generator=generator).tolist() for _ in range(2)]

    def right(replaced):
        return {s: predict(model, x[s].tolist(), replaced, values) == label_of[s] for s in test}

    def ratio(after, rows):
        return sum(after[s] for s in rows) / sum(before[s] for s in rows)

    before = right(())
    assert 0 < sum(before.values()) < len(test)
    for label in range(3):
        fit = [
            correlation(
                [float(modes.loadings[s, m]) for s in train], [label_of[s] == label for s in train]
            )
            for m in range(4)
        ]
        best = max(range(4), key=lambda m: fit[m])
        own = [s for s in train if label_of[s] == label]
        rest = [s for s in train if label_of[s] != label]

        def more(value, own=own, rest=rest):
            """How much more of a value the label's samples have than the others."""
            return sum(map(value, own)) / len(own) - sum(map(value, rest)) / len(rest)

        used = [more(lambda s, m=m: float(modes.loadings[s, m])) for m in range(4)]
        all_modes = [sum(used[m] * float(modes.atoms[m, u]) for m in range(4)) for u in range(7)]
        mean = [more(lambda s, u=u: contribution[s][u]) for u in range(7)]
        atom = modes.atoms[best].tolist()
        orders = {
            "modes": [sorted(range(7), key=lambda u: -all_modes[u])],
            "best_mode": [sorted(range(7), key=lambda u: -atom[u])],
            "contribution_difference": [sorted(range(7), key=lambda u: -mean[u])],
            "random": draws,
        }
        assert set(orders) == set(table["ranking"])
        for ranking, several in orders.items():
            rows = table[(table["label"] == label) & (table["ranking"] == ranking)]
            curve = {"target": [], "off": []}
            for fraction in fractions:
                count = int(7 * fraction)
                target, off = [], []
                for order in several:
                    named = order[:count]
                    others = [unit for unit in range(7) if unit not in named]
                    after = right(named if kind == "ablate" else others)
                    target.append(ratio(after, [s for s in test if label_of[s] == label]))
                    off.append(ratio(after, [s for s in test if label_of[s] != label]))
                curve["target"].append(sum(target) / len(target))
                curve["off"].append(sum(off) / len(off))
            assert rows["n_units"].tolist() == [int(7 * fraction) for fraction in fractions]
            assert rows["target_accuracy"].tolist() == pytest.approx(curve["target"], abs=1e-12)
            assert rows["off_accuracy"].tolist() == pytest.approx(curve["off"], abs=1e-12)
            area = {
                of: sum((fractions[i + 1] - fractions[i]) * (c[i] + c[i + 1]) / 2 for i in range(3))
                for of, c in curve.items()
            }
            difference = areas.loc[(label, ranking), "auc_difference"]
            expected = (area["target"] - area["off"]) / area["off"]
            assert difference == pytest.approx(expected, abs=1e-12)
        chosen = table[(table["label"] == label) & (table["ranking"] == "best_mode")]
        assert chosen["mode"].unique().tolist() == [int(modes.ids[best])]
        assert chosen["correlation"].tolist() == pytest.approx([fit[best]] * 4, abs=1e-5)
