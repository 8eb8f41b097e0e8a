"""Control curves by plain loops in float64: replacements, measures, intervals, summaries.

Melander et al. 2026, section 2 "Ablation" and figure 6E for what is measured; the bootstrap is
Efron's percentile interval, images drawn again within each label.
"""

import math
import random

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from condec.attribution.targets import Label
from condec.effects import (
    ByScores,
    ByUnit,
    CurveOptions,
    RandomUnits,
    compare,
    mean_over_labels,
    measure_curves,
    resample_counts,
    summarise,
)
from condec.effects.curve import draw_donors
from condec.modes.modes import Modes
from condec.network.sites import Site
from condec.store.collection import collect

N_LABELS, N_UNITS, FRACTIONS = 3, 4, (0.25, 0.5, 0.75)


class Net(nn.Module):
    """Output is a linear map of its input, with a site between."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Identity()
        self.weight = torch.tensor(
            [[1.0, 0.5, 0.0, -0.5], [0.0, 1.0, 0.5, -1.0], [-1.0, 0.0, 0.5, 1.0]]
        ).double()
        self.eval()

    def forward(self, x):
        return self.hidden(x) @ self.weight.T


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(60, N_UNITS, generator=generator, dtype=torch.float64)
    noise = 0.6 * torch.randn(60, N_LABELS, generator=generator, dtype=torch.float64)
    model = Net()
    labels = (model(x) + noise).argmax(1)
    path = tmp_path_factory.mktemp("curves") / "s"
    arguments = {"target": Label(), "out": path, "batch_size": 60, "progress": False}
    store = collect(model, (x, labels), "hidden", **arguments)
    modes = Modes(
        atoms=torch.eye(N_LABELS, N_UNITS), loadings=torch.rand(60, N_LABELS),
        ids=torch.arange(N_LABELS), held_out=torch.arange(60) % 2 == 1, store=store,
        site=Site("hidden"), sign="sum", quantity="contribution", n_modes=N_LABELS,
    )  # fmt: skip
    return model, (x, labels), modes


SCORES = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 4.0, 3.0, 2.0], [2.0, 1.0, 3.0, 4.0]])


def curves_of(chain, **options):
    rankings = [
        ByScores(scores=SCORES, name="given"),
        ByUnit(store=chain[2].store, site="hidden", rows=~chain[2].held_out),
        RandomUnits(n_units=N_UNITS, n_draws=3, seed=1),
    ]
    fields = {"fractions": FRACTIONS, "rankings": rankings, "n_bootstrap": 40, "batch_size": 7}
    return measure_curves(*chain, CurveOptions(**(fields | options)))


def outputs(chain, units, edit, replacement, label, seed=0):
    """Outputs of held-out samples in the order of the store, edited by hand."""
    model, (x, labels), modes = chain
    train, test = x[~modes.held_out], x[modes.held_out].clone()
    source = test[torch.tensor(draw_donors(len(test), seed))].clone()
    replaced = units if edit == "ablate" else [u for u in range(N_UNITS) if u not in units]
    for unit in replaced:
        if replacement == "zero":
            test[:, unit] = 0.0
        elif replacement == "mean":
            test[:, unit] = sum(train[:, unit].tolist()) / len(train)
        elif replacement == "class_mean":
            own = train[labels[~modes.held_out] == label][:, unit].tolist()
            test[:, unit] = sum(own) / len(own)
        else:
            test[:, unit] = source[:, unit]
    return [
        [sum(w * h for w, h in zip(row, one, strict=True)) for row in model.weight.tolist()]
        for one in test.tolist()
    ]


def numbers(logits, label):
    """Whether it is right, logit and probability of the label, entropy."""
    top = max(logits)
    odds = [math.exp(value - top) for value in logits]
    shares = [value / sum(odds) for value in odds]
    entropy = -sum(p * math.log(p) for p in shares if p)
    return logits.index(top) == label, logits[label], shares[label], entropy


@pytest.mark.parametrize("edit", ["ablate", "preserve"])
@pytest.mark.parametrize("replacement", ["zero", "mean", "class_mean", "resample"])
def test_measures_by_loops(chain, edit, replacement):
    table = curves_of(chain, edit=edit, replacement=replacement, seed=2).to_frame()
    own = chain[1][1][chain[2].held_out].tolist()
    plain = outputs(chain, [], "ablate", "zero", 0)
    before = [numbers(out, k) for out, k in zip(plain, own, strict=True)]
    given = table[table["ranking"] == "given"]
    for row in given.to_dict("records"):
        count = int(N_UNITS * row["fraction"])
        units = sorted(range(N_UNITS), key=lambda u: -float(SCORES[row["label"], u]))[:count]
        edited = outputs(chain, units, edit, replacement, row["label"], seed=2)
        after = [numbers(out, k) for out, k in zip(edited, own, strict=True)]
        for of in ("target", "off"):
            rows = [s for s, k in enumerate(own) if (k == row["label"]) == (of == "target")]
            n_before, n_after = (sum(which[s][0] for s in rows) for which in (before, after))
            assert row[f"{of}_accuracy"] == pytest.approx(n_after / n_before)
            assert row[f"{of}_edited"] == pytest.approx(n_after / len(rows))
            assert row[f"{of}_unedited"] == pytest.approx(n_before / len(rows))
            for place, what in enumerate(("logit", "probability", "entropy"), 1):
                change = sum(after[s][place] - before[s][place] for s in rows) / len(rows)
                assert row[f"{of}_{what}"] == pytest.approx(change, abs=1e-5), (of, what)


def area(y, x):
    return sum((x[i + 1] - x[i]) * (y[i] + y[i + 1]) / 2 for i in range(len(x) - 1))


def percentile(values, share):
    """By linear interpolation between order statistics."""
    values = sorted(value for value in values if not math.isnan(value))
    place = share * (len(values) - 1)
    low = math.floor(place)
    return values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])


def resampled(curves, curve, counts, draws):
    """Target and off-target curve in one resample, image by image."""
    own, right = curves.measured.labels.tolist(), curves.measured.right.tolist()
    both = []
    for of in ("target", "off"):
        rows = [s for s, k in enumerate(own) if (k == curve.ranked.label) == (of == "target")]
        n_before = sum(counts[s] * right[0][s] for s in rows)
        points = []
        for of_draws in curve.numbers.tolist():
            ratios = [sum(counts[s] * right[e][s] for s in rows) / n_before for e in of_draws]
            points.append(sum(w * r for w, r in zip(draws, ratios, strict=True)))
        both.append(points)
    return both


def test_intervals_by_loops(chain):
    curves = curves_of(chain, seed=4)
    table = curves.to_frame()
    counts = resample_counts(curves.measured.labels, 40, 4).tolist()
    drawn = (resample_counts(3, 40, 4).double() / 3).tolist()
    for curve in curves.curves:
        n_draws = curve.numbers.shape[1]
        every = [
            resampled(curves, curve, counts[b], drawn[b] if n_draws > 1 else [1.0])
            for b in range(41)
        ]
        rows = table[
            (table["label"] == curve.ranked.label) & (table["ranking"] == curve.ranked.name)
        ]
        for of, name in enumerate(("target", "off")):
            assert rows[f"{name}_accuracy"].tolist() == pytest.approx(every[0][of])
            for bound, share in (("low", 0.025), ("high", 0.975)):
                found = [percentile([one[of][f] for one in every[1:]], share) for f in range(3)]
                assert rows[f"{name}_{bound}"].tolist() == pytest.approx(found, abs=1e-6)
        areas = [[area(points, FRACTIONS) for points in one] for one in every]
        values = [(target - off) / off for target, off in areas]
        for bound, share in (("low", 0.025), ("high", 0.975)):
            wanted = percentile(values[1:], share)
            assert rows[f"auc_{bound}"].unique() == pytest.approx([wanted], abs=1e-6)


def test_resamples_draw_as_many_images_of_every_label():
    labels = torch.tensor([0, 1, 1, 2, 2, 2])
    counts = resample_counts(labels, 200, 7)
    assert counts[0].tolist() == [1.0] * 6
    for label, number in ((0, 1), (1, 2), (2, 3)):
        assert (counts[:, labels == label].sum(1) == number).all()
    # Every image is expected once.
    assert counts.mean(0).tolist() == pytest.approx([1.0] * 6, abs=0.2)
    assert torch.equal(counts, resample_counts(labels, 200, 7))
    assert not torch.equal(counts, resample_counts(labels, 200, 8))


@pytest.mark.parametrize("by", ["auc_difference", "area_between"])
@pytest.mark.parametrize("edit", ["ablate", "preserve"])
def test_comparison_by_loops(chain, by, edit):
    curves = curves_of(chain, seed=4, edit=edit)
    counts = resample_counts(curves.measured.labels, 40, 4).tolist()
    labels = (resample_counts(N_LABELS, 40, 5).double() / N_LABELS).tolist()
    values = {}
    for curve in curves.curves:
        if curve.ranked.name == "random":
            continue
        for b in range(41):
            target, off = (area(c, FRACTIONS) for c in resampled(curves, curve, counts[b], [1.0]))
            between = (off - target if edit == "ablate" else target - off) / 0.5
            value = (target - off) / off if by == "auc_difference" else between
            values[curve.ranked.name, curve.ranked.label, b] = value
    found = []
    for b in range(41):
        per_label = [
            values["given", k, b] - values["mean_contribution", k, b] for k in range(N_LABELS)
        ]
        found.append(sum(w * d for w, d in zip(labels[b], per_label, strict=True)))
    table = compare(curves, by=by)
    assert list(zip(table["ranking"], table["against"], strict=True)) == [
        ("given", "mean_contribution"), ("given", "random"), ("mean_contribution", "random"),
    ]  # fmt: skip
    row = table.iloc[0]
    low, high = percentile(found[1:], 0.025), percentile(found[1:], 0.975)
    assert row["difference"] == pytest.approx(found[0])
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1e-6)
    assert row["value"] - row["against_value"] == pytest.approx(found[0])
    sign = -1 if by == "auc_difference" and edit == "ablate" else 1
    verdict = "better" if sign * (low if sign > 0 else high) > 0 else "equal"
    verdict = "worse" if sign * (high if sign > 0 else low) < 0 else verdict
    assert row["verdict"] == verdict


@pytest.mark.parametrize("seed", range(6))
def test_summary_against_a_fine_grid(seed):
    generator = random.Random(seed)
    edit = "ablate" if seed % 2 else "preserve"
    x = sorted(generator.sample([i / 100 for i in range(1, 100)], 6))
    target = [generator.uniform(0.0, 1.1) for _ in x]
    off = [generator.uniform(0.1, 1.1) for _ in x]
    table = pd.DataFrame({
        "site": "s", "label": 0, "label_name": "a", "ranking": "modes", "edit": edit,
        "replacement": "zero", "fraction": x, "target_accuracy": target, "off_accuracy": off,
    })  # fmt: skip
    (row,) = summarise(table.sample(frac=1.0, random_state=seed)).to_dict("records")
    assert row["auc_difference"] == pytest.approx((area(target, x) - area(off, x)) / area(off, x))
    between = (area(off, x) - area(target, x)) / (x[-1] - x[0])
    assert row["area_between"] == pytest.approx(between if edit == "ablate" else -between)
    assert math.isnan(row["auc_low"])
    # What no unit ablated and every unit preserved do is known: nothing.
    whole = ([0.0, *x], [1.0, *target], [1.0, *off])
    if edit == "preserve":
        whole = ([*x, 1.0], [*target, 1.0], [*off, 1.0])
    grid = np.linspace(whole[0][0], whole[0][-1], 200_001)
    on_grid, off_grid = (np.interp(grid, whole[0], y) for y in whole[1:])
    reached = on_grid <= 0.5 if edit == "ablate" else on_grid >= 0.5
    if not reached.any():
        assert math.isnan(row["half_dose"])
        assert math.isnan(row["off_damage"])
        return
    first = int(reached.argmax())
    assert row["half_dose"] == pytest.approx(grid[first], abs=2e-5)
    assert row["off_damage"] == pytest.approx(1 - off_grid[first], abs=2e-3)


def test_mean_over_labels_by_loops():
    values = torch.tensor([[0.1, 2.0], [0.4, math.nan], [0.3, 5.0], [0.9, 1.0]])
    found = mean_over_labels(values, n_bootstrap=50, seed=3)
    weights = (resample_counts(4, 50, 3).double() / 4).tolist()
    for column in range(2):
        means = []
        for row in weights:
            pairs = [
                (w, float(v))
                for w, v in zip(row, values[:, column], strict=True)
                if not math.isnan(v)
            ]
            total = sum(w for w, _ in pairs)
            means.append(sum(w * v for w, v in pairs) / total if total else math.nan)
        low, high = percentile(means[1:], 0.025), percentile(means[1:], 0.975)
        assert found[:, column].tolist() == pytest.approx([means[0], low, high])
    assert mean_over_labels(values[:1]).isnan().tolist() == [[False, False], [True] * 2, [True] * 2]
