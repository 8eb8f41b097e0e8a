"""Every figure of `layer_statistics` from its formula, by loops in float64.

Melander et al. 2026, section 2 "Hoyer sparsity", "Participation ratio", "Dimensionality",
"Positive-negative correlation".
"""

import math

import pytest
import torch

from condec.network.sites import Site, Units
from condec.store.shards import SiteInfo
from condec.store.statistics import layer_statistics
from condec.store.store import Store


def quantile(values, share):
    """Between the two nearest values, by their distance."""
    values = sorted(values)
    place = share * (len(values) - 1)
    below = min(int(place), len(values) - 2)
    return values[below] + (place - below) * (values[below + 1] - values[below])


def quartiles(name, values):
    values = list(values)
    return {
        f"{name}{end}": quantile(values, share)
        for end, share in (("", 0.5), ("_q25", 0.25), ("_q75", 0.75))
    }


def excess(p, n, a, b):
    """Of one sample: positive and negative parts of contributions, and of activations."""
    as_constant = []
    for up, down, on, off in zip(p, n, a, b, strict=True):
        size, share = up - down, on / (on - off)
        either = [(size * share, size * (1 - share)), (size * (1 - share), size * share)]
        as_constant.append(min(either, key=lambda pair: abs(pair[0] - up)))
    forced = pearson(*zip(*as_constant, strict=True))
    return -pearson(p, n) - forced


def hoyer(v):
    root = math.sqrt(len(v))
    one = sum(abs(x) for x in v)
    two = math.sqrt(sum(x * x for x in v))
    return (root - one / (two + 1e-6)) / (root - 1)


def participation(v):
    return sum(x**2 for x in v) ** 2 / sum(x**4 for x in v)


def pearson(a, b):
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    top = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    size_a = math.sqrt(sum((x - mean_a) ** 2 for x in a))
    size_b = math.sqrt(sum((y - mean_b) ** 2 for y in b))
    return top / (size_a * size_b)


def eigenvalues(matrix):
    """Of a symmetric matrix, by Jacobi rotations."""
    a, n = [list(row) for row in matrix], len(matrix)
    for _ in range(60):
        for p in range(n):
            for q in range(p + 1, n):
                if abs(a[p][q]) < 1e-300:
                    continue
                angle = 0.5 * math.atan2(2 * a[p][q], a[q][q] - a[p][p])
                c, s = math.cos(angle), math.sin(angle)
                for k in range(n):
                    a[k][p], a[k][q] = c * a[k][p] - s * a[k][q], s * a[k][p] + c * a[k][q]
                for k in range(n):
                    a[p][k], a[q][k] = c * a[p][k] - s * a[q][k], s * a[p][k] + c * a[q][k]
    return sorted((a[i][i] for i in range(n)), reverse=True)


def dimensions(rows):
    n_units = len(rows[0])
    means = [sum(row[u] for row in rows) / len(rows) for u in range(n_units)]
    covariance = [
        [sum((r[u] - means[u]) * (r[v] - means[v]) for r in rows) for v in range(n_units)]
        for u in range(n_units)
    ]
    values = eigenvalues(covariance)
    held, total = 0.0, sum(values)
    for number, value in enumerate(values, start=1):
        held += value
        if held >= 0.95 * total:
            return number
    return n_units


@pytest.mark.parametrize("n_samples", [8, 9])
def test_statistics_by_loops(tmp_path, n_samples):
    generator = torch.Generator().manual_seed(n_samples)
    scale = torch.tensor([4.0, 1.0, 0.5, 0.2, 0.1])
    contribution = torch.randn(n_samples, 2, 5, generator=generator).abs() * scale
    contribution[:, 1] *= -1
    activation = torch.randn(n_samples, 2, 5, generator=generator).abs() * scale.flip(0)
    activation[:, 1] *= -0.1
    target, baseline = torch.rand(n_samples, generator=generator) + 2, torch.ones(n_samples)
    site = Site("layer")
    store = Store.create(
        tmp_path / "s.zarr",
        recipe={"method": {"name": "ActGrad"}},
        sites=[SiteInfo(site=site, units=Units("channels"), n_units=5, n_positions=9, cut=True)],
        n_samples=n_samples,
        shard_size=n_samples,
    )
    none = torch.full((n_samples,), -1)
    labels = torch.arange(n_samples) % 3
    store.write_shard(0, {
        "inputs/id": tuple(map(str, range(n_samples))), "inputs/label": labels,
        "inputs/prediction": none, "inputs/steps": none, "inputs/target": target,
        "inputs/target_baseline": baseline, "inputs/valid": torch.ones(n_samples, dtype=torch.bool),
        "sites/layer/contribution": contribution, "sites/layer/activation": activation,
    })  # fmt: skip

    positive, negative = contribution[:, 0].double().tolist(), contribution[:, 1].double().tolist()
    signs = list(zip(positive, negative, strict=True))
    sums = [[x + y for x, y in zip(p, n, strict=True)] for p, n in signs]
    active = activation.double().tolist()
    acts = [[x + y for x, y in zip(p, n, strict=True)] for p, n in active]
    change = (target.double() - baseline.double()).tolist()

    def means(rows):
        of = [[row for s, row in enumerate(rows) if s % 3 == label] for label in range(3)]
        return [[sum(one) / len(one) for one in zip(*some, strict=True)] for some in of]

    expected = {
        "units": 5,
        "dims95_contribution": dimensions(sums),
        "dims95_activation": dimensions(acts),
        "dims95_means_contribution": dimensions(means(sums)),
        "dims95_means_activation": dimensions(means(acts)),
        **quartiles("hoyer_contribution", map(hoyer, sums)),
        **quartiles("hoyer_activation", map(hoyer, acts)),
        **quartiles("participation_ratio_contribution", map(participation, sums)),
        **quartiles("participation_ratio_activation", map(participation, acts)),
        **quartiles("sign_correlation", (-pearson(p, n) for p, n in signs)),
        **quartiles("sign_excess", (excess(*s, *a) for s, a in zip(signs, active, strict=True))),
        **quartiles("completeness", (sum(v) / d for v, d in zip(sums, change, strict=True))),
    }
    (row,) = layer_statistics(store).to_dict("records")
    assert row.pop("site") == "layer"
    assert row == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("at_baseline", [0.0, 0.7])
def test_a_constant_gradient_splits_contributions_by_the_change_of_the_activation(at_baseline):
    """Its excess is 0 by the parts of h - h0; by those of h only where h0 is 0."""
    generator = torch.Generator().manual_seed(0)
    active = torch.randn(6, 9, generator=generator, dtype=torch.float64).clamp(min=0).tolist()
    gradients = torch.randn(6, generator=generator, dtype=torch.float64).tolist()

    def parts(rows):
        return [[sum(x for x in row if x > 0), sum(x for x in row if x < 0)] for row in rows]

    moved = [[h - at_baseline for h in row] for row in active]
    # A straight path in five steps, of one gradient: contributions g (h - h0).
    along = [
        [sum(g * d / 5 for _ in range(5)) for d in row]
        for g, row in zip(gradients, moved, strict=True)
    ]
    p, n = zip(*parts(along), strict=True)
    assert excess(p, n, *zip(*parts(moved), strict=True)) == pytest.approx(0, abs=1e-12)
    of_activations = excess(p, n, *zip(*parts(active), strict=True))
    assert abs(of_activations) < 1e-12 if at_baseline == 0 else of_activations > 0.3
