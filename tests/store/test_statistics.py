"""Per-site statistics: known cases, undefined figures, and the published reference run."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from condec.attribution import (
    ActGrad,
    ActNormGrad,
    Gradient,
    IntegratedGradients,
    SmoothGrad,
    UnitAblation,
)
from condec.attribution.reduce import split_and_sum
from condec.attribution.targets import Logit
from condec.basis.errors import DataError
from condec.basis.metrics import pearson
from condec.network.sites import Site, Units
from condec.store import statistics
from condec.store.collection import collect
from condec.store.matrix import StoredMatrix
from condec.store.shards import SiteInfo
from condec.store.statistics import SiteRows, compare_trends, layer_statistics, sign_excess
from condec.store.store import Store
from condec.testing.models import small_mlp, small_resnet

IMAGES = torch.randn(12, 1, 6, 6, generator=torch.Generator().manual_seed(0))
OPTIONS = {"target": Logit(0), "progress": False}
ENDS = ("", "_q25", "_q75")
BY_SAMPLE = [
    "hoyer_contribution", "hoyer_activation", "participation_ratio_contribution",
    "participation_ratio_activation", "sign_correlation", "sign_excess", "completeness",
]  # fmt: skip
BY_SITE = [f"dims95{of}_{q}" for of in ("", "_means") for q in ("contribution", "activation")]
COLUMNS = {"site", "units", *BY_SITE, *(f"{name}{end}" for name in BY_SAMPLE for end in ENDS)}


def pooled(bias):
    """Convolution, ReLU (site "1"), mean over space, and logits: of a gradient constant there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolution = nn.Conv2d(1, 8, 3, padding=1, bias=bias)
        head = nn.Linear(8, 3)
    return nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()


def make_store(path, contribution, activation, *, cut=True, valid=None, shard=None, labels=None):
    """A store of one site "x" from arrays [sample, sign, unit]."""
    valid = torch.ones(len(contribution), dtype=torch.bool) if valid is None else valid
    n_samples, _, n_units = contribution.shape
    info = SiteInfo(
        site=Site("x"), units=Units("features"), n_units=n_units, n_positions=1, cut=cut
    )
    sizes = {"n_samples": n_samples, "shard_size": shard or n_samples}
    store = Store.create(path, recipe={"made": "by hand"}, sites=[info], **sizes)
    for index in range(store.n_shards):
        rows = list(store.shard_rows(index))
        none = torch.full((len(rows),), -1)
        of = none if labels is None else labels[rows]
        store.write_shard(index, {
            "inputs/id": tuple(map(str, rows)), "inputs/label": of,
            "inputs/prediction": none, "inputs/steps": none,
            "inputs/target": torch.full((len(rows),), 2.0),
            "inputs/target_baseline": torch.zeros(len(rows)), "inputs/valid": valid[rows],
            "sites/x/contribution": contribution[rows], "sites/x/activation": activation[rows],
        })  # fmt: skip
    return store


def split(matrix):
    return torch.stack((matrix.clamp(min=0), matrix.clamp(max=0)), 1)


def only_row(store):
    (row,) = layer_statistics(store).drop(columns="site").to_dict("records")
    return row


def test_known_case(tmp_path):
    one_unit = torch.tensor([[4.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]])
    alike = torch.tensor([[1.0], [2.0], [3.0]]).expand(3, 4)
    row = only_row(make_store(tmp_path / "s", split(one_unit), split(alike)))
    assert row["units"] == 4
    assert row["hoyer_contribution"] == pytest.approx(1.0, abs=1e-5)
    assert row["hoyer_activation"] == pytest.approx(0.0, abs=1e-5)
    assert row["participation_ratio_contribution"] == pytest.approx(1.0)
    assert row["participation_ratio_activation"] == pytest.approx(4.0)
    assert (row["dims95_contribution"], row["dims95_activation"]) == (2, 1)
    assert row["completeness"] == pytest.approx(3.0 / 2.0)


def test_parts_of_one_size_are_fully_correlated(tmp_path):
    part = torch.rand(5, 6) + 0.1
    row = only_row(make_store(tmp_path / "s", torch.stack((part, -2 * part), 1), split(part)))
    assert row["sign_correlation"] == pytest.approx(1.0, abs=1e-5)
    row = only_row(make_store(tmp_path / "t", torch.stack((part, part - 2), 1), split(part)))
    assert row["sign_correlation"] == pytest.approx(-1.0, abs=1e-5)


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_gradient_constant_over_space_has_no_excess(seed, signed):
    """Theorem: contributions g_u h_up, of any activations, correlate as far as they are forced."""
    drawn = torch.Generator().manual_seed(seed)
    active = torch.randn(5, 6, 9, generator=drawn, dtype=torch.float64)
    active = active if signed else active.clamp(min=0)
    gradient = torch.randn(5, 6, 1, generator=drawn, dtype=torch.float64)
    activation, constant = (
        split_and_sum(values, Units("channels")) for values in (active, gradient * active)
    )
    none = torch.full((5,), -1)
    rows = SiteRows(constant[:, 0], constant[:, 1], constant.sum(1), (*activation.unbind(1),), none)
    assert sign_excess(rows).abs().max() < 1e-9
    if not signed:  # and that is no sign of learning
        assert bool((pearson(constant[:, 0], -constant[:, 1], 1) <= 0).all())
    # One that varies over space has both signs in one unit, and is above.
    varied = gradient * torch.tensor([1.0, -1.0, 1.0] * 3) * active.abs()
    varied = split_and_sum(varied, Units("channels"))
    size = split_and_sum(active.abs(), Units("channels"))
    rows = SiteRows(varied[:, 0], varied[:, 1], varied.sum(1), (*size.unbind(1),), none)
    assert sign_excess(rows).mean() > 0.3


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("method", [ActGrad(), ActNormGrad()], ids=str)
def test_the_last_stage_before_global_pooling_has_no_excess(tmp_path, method, bias):
    """At it the gradient of a logit is constant over space, and the sign correlation forced."""
    store = collect(pooled(bias), IMAGES, "1", out=tmp_path / "s", method=method, **OPTIONS)
    row = only_row(store)
    assert row["sign_correlation"] < -0.05
    assert [row[f"sign_excess{end}"] for end in ENDS] == pytest.approx([0, 0, 0], abs=1e-5)


@pytest.mark.parametrize(
    "method", [IntegratedGradients(steps=20), IntegratedGradients(steps=2, path="layer"),
               SmoothGrad(n_samples=2), Gradient(), UnitAblation()], ids=str,
)  # fmt: skip
def test_other_methods_have_no_excess_that_a_store_could_tell(tmp_path, method):
    """With a bias the activation at the baseline is not 0, and contributions are split by it."""
    store = collect(pooled(True), IMAGES, "1", out=tmp_path / "s", method=method, **OPTIONS)
    row = only_row(store)
    assert all(math.isnan(row[f"sign_excess{end}"]) for end in ENDS)
    assert math.isfinite(row["sign_correlation"])
    if isinstance(method, IntegratedGradients):  # what it would be: a constant gradient's is 0
        (up, down), active = (
            store.matrix("1", of, "concat").double().chunk(2, 1) for of in statistics.QUANTITIES
        )
        assert sign_excess(SiteRows(up, down, up + down, active, store.labels)).median() > 0.3


def test_dimensions_of_labels_means(tmp_path):
    """Labels that differ along one axis have means of one dimension, whatever else varies."""
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    matrix = torch.randn(60, 4) * 1e-3 + torch.tensor([5.0, 0, 0, 0]) * labels[:, None]
    matrix[labels == 2, 1:] += torch.randn(20, 3)  # within a label
    labels[0] = -1
    row = only_row(make_store(tmp_path / "s", split(matrix), split(matrix), labels=labels))
    assert row["dims95_means_contribution"] == 1
    assert row["dims95_contribution"] == 1
    alone = only_row(make_store(tmp_path / "t", split(matrix), split(matrix), labels=labels * 0))
    assert math.isnan(alone["dims95_means_contribution"])


def test_rows_are_worked_on_in_blocks(tmp_path, monkeypatch):
    contribution = torch.randn(11, 2, 6).abs() * torch.tensor([1.0, -1.0])[:, None]
    store = make_store(tmp_path / "s", contribution, split(torch.randn(11, 6)))
    whole = only_row(store)
    monkeypatch.setattr(statistics, "_ROWS_AT_ONCE", 4)
    assert only_row(store) == pytest.approx(whole, abs=0, rel=0, nan_ok=True)


def test_every_shard_is_read_once_and_the_figures_are_those_of_the_whole(tmp_path, monkeypatch):
    contribution = torch.randn(40, 2, 6).abs() * torch.tensor([1.0, -1.0])[:, None] + 9
    activation, valid = split(torch.randn(40, 6) + 100), torch.arange(40) // 8 != 2
    whole = make_store(tmp_path / "s", contribution, activation, valid=valid)
    shards = make_store(tmp_path / "t", contribution, activation, valid=valid, shard=8)
    read, plain = [], StoredMatrix._reader

    def reader(self):
        function = plain(self)
        return lambda block: read.append((self._array, block)) or function(block)

    monkeypatch.setattr(StoredMatrix, "_reader", reader)
    found, wanted = only_row(shards), only_row(whole)
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-6, nan_ok=True)
    of_shards = [one for one in read if one[1]]
    assert len(set(of_shards)) == len(of_shards) == 2 * 4


def test_undefined_figures_are_nan_and_skipped_by_the_median(tmp_path):
    contribution = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    row = only_row(make_store(tmp_path / "s", split(contribution), split(contribution), cut=False))
    assert row["participation_ratio_contribution"] == 1.0  # the zero sample has none
    assert math.isnan(row["completeness"])
    single = only_row(make_store(tmp_path / "t", torch.rand(3, 2, 1), torch.rand(3, 2, 1)))
    assert math.isnan(single["hoyer_contribution"])
    assert math.isnan(single["hoyer_activation"])


def test_invalid_rows_do_not_count(tmp_path):
    matrix = torch.rand(6, 4)
    valid = torch.tensor([True, True, False, True, True, True])
    spoilt = matrix.clone()
    spoilt[2] = float("nan")
    row = only_row(make_store(tmp_path / "s", split(spoilt), split(spoilt), valid=valid))
    kept = only_row(make_store(tmp_path / "t", split(matrix[valid]), split(matrix[valid])))
    assert row == pytest.approx(kept, abs=0, rel=0, nan_ok=True)


def test_no_valid_sample(tmp_path):
    nan = torch.full((2, 2, 3), float("nan"))
    store = make_store(tmp_path / "s", nan, nan, valid=torch.zeros(2, dtype=torch.bool))
    with pytest.raises(DataError, match="has no valid sample; collect contributions first"):
        layer_statistics(store)


def test_table_of_a_collected_store(tmp_path):
    x = torch.randn(12, 1, 6, 6)
    sites = ["stem", "block1", "block2"]
    store = collect(small_resnet(), x, sites, out=tmp_path / "s", progress=False)
    table = layer_statistics(store)
    assert set(table.columns) == COLUMNS
    assert table["site"].tolist() == sites
    assert table["units"].tolist() == [4, 4, 4]
    unlabelled = table.columns.str.startswith(("dims95_means", "sign_excess"))  # nor on a path
    assert table.loc[:, ~unlabelled].drop(columns="site").notna().all().all()
    assert table.loc[:, unlabelled].isna().all().all()
    assert table["completeness"].iloc[-1] == pytest.approx(1.0, abs=0.05)
    again = layer_statistics(Store.open(tmp_path / "s"))
    pd.testing.assert_frame_equal(table, again)


def test_no_completeness_without_a_baseline(tmp_path):
    x = torch.randn(12, 5)
    store = collect(small_mlp(), x, "1", method=ActGrad(), out=tmp_path / "s", progress=False)
    assert layer_statistics(store)["completeness"].isna().all()


@pytest.mark.needs_shared
@pytest.mark.parametrize(
    ("limit", "near"), [(80, 0.05), pytest.param(None, 0.002, marks=pytest.mark.slow)]
)
def test_reference_run_on_cifar10(shared_data, tmp_path, limit, near):
    """Figures that an independent implementation measured on 2,000 images; a part is near them."""
    from condec.data import load_data
    from condec.models import load_model
    from condec.models.python import load_function

    folder = shared_data / "cifar10"
    loaded = load_model(
        f"python:{folder / 'cifar_resnet.py'}:load_resnet",
        weights=folder / "resnet20_cifar10.safetensors",
    )
    preprocess = load_function(f"{folder / 'cifar_resnet.py'}:preprocess")
    data = load_data(f"npz:{folder / 'test_2000.npz'}", preprocess=preprocess, limit=limit)
    reference = json.loads(
        (shared_data.parent / "reference/cifar_resnet20_expected.json").read_text()
    )
    store = collect(loaded.model, data, "layer[1-3].*", out=tmp_path / "s", progress=False)
    accuracy = float((store.predictions == store.labels).double().mean())
    assert accuracy == pytest.approx(reference["accuracy"], abs=0.02 if limit else 0.0)
    table = layer_statistics(store).set_index("site")
    expected = pd.DataFrame(reference["rows"]).set_index("site")
    assert table.index.tolist() == expected.index.tolist()
    difference = (table[expected.columns] - expected).abs().max()
    means = ["hoyer_contribution", "hoyer_activation", "sign_correlation"]
    assert (difference[means] <= near).all(), difference
    if limit is None:  # dimensions grow with the number of images
        assert (difference[["dims95_contribution", "dims95_activation"]] <= 1).all(), difference
    whole = 0.01 if limit else 5e-4
    assert table.loc["layer3.2", "completeness"] == pytest.approx(1.0, abs=whole)


# --- trends -------------------------------------------------------------------------------


def table(sites="abcd", **columns):
    return pd.DataFrame({"site": list(sites), "units": 3, "completeness": 1.0, **columns})


def test_trends_of_both_and_whether_they_are_shared():
    real = table(
        hoyer_contribution=[0.1, 0.2, 0.3, 0.4], dims95_contribution=[4, 3, 2, 1],
        sign_correlation=[0.1, 0.2, 0.3, 0.4], hoyer_activation=[0.5, 0.5, 0.5, 0.5],
    )  # fmt: skip
    twin = table(
        hoyer_contribution=[0.2, 0.3, 0.25, 0.9], dims95_contribution=[1, 2, 3, 4],
        sign_correlation=[0.0, 0.1, 0.9, 0.0], hoyer_activation=[0.1, 0.2, 0.3, 0.4],
    )  # fmt: skip
    found = compare_trends(real, twin).set_index("statistic")
    assert list(found.index) == [
        "hoyer_contribution", "dims95_contribution", "sign_correlation", "hoyer_activation",
    ]  # fmt: skip
    assert found["trend"].tolist() == pytest.approx([1, -1, 1, 0])
    # Ranks 1, 3, 2, 4; 1, 2, 3, 4; and 1.5, 3, 4, 1.5, by hand.
    tied = 0.5 / math.sqrt(5 * 4.5)
    assert found["twin_trend"].tolist() == pytest.approx([0.8, 1, tied, 1])
    assert found["shared"].tolist() == [True, False, False, False]
    assert found.loc["hoyer_contribution", ["above", "below", "sites"]].tolist() == [1, 3, 4]
    assert found.loc["dims95_contribution", ["above", "below"]].tolist() == [2, 2]


def test_trends_leave_out_what_is_not_defined():
    real = table(hoyer_contribution=[0.1, math.nan, 0.3, 0.2], sign_correlation=[math.nan] * 4)
    twin = table("dcba", hoyer_contribution=[1.0, 2.0, 3.0, 4.0], sign_correlation=[0.0] * 4)
    found = compare_trends(real, twin).set_index("statistic")
    assert found.loc["hoyer_contribution", "trend"] == pytest.approx(0.5)
    assert found.loc["hoyer_contribution", "twin_trend"] == pytest.approx(-1)
    assert found.loc["hoyer_contribution", "sites"] == 3
    assert math.isnan(found.loc["sign_correlation", "trend"])
    assert not found.loc["sign_correlation", "shared"]
    few = compare_trends(real[:2], twin)
    assert few["trend"].isna().all()
    assert not few["shared"].any()


def test_trends_of_other_sites():
    with pytest.raises(DataError, match="no site is in both tables"):
        compare_trends(table("ab"), table("cd"))


def test_a_trend_is_tested_against_the_twins_by_exchanging_them() -> None:
    """By hand: of the 2^4 ways to exchange four sites, those with slopes as far apart."""
    sites = ["a", "b", "c", "d"]
    real = pd.DataFrame({"site": sites, "hoyer": [0.1, 0.35, 0.5, 0.9]})
    twin = pd.DataFrame({"site": sites, "hoyer": [0.3, 0.3, 0.25, 0.32]})
    found = compare_trends(real, twin)["p"].item()
    apart, place = real["hoyer"] - twin["hoyer"], [-1.5, -0.5, 0.5, 1.5]
    own = abs(sum(a * x for a, x in zip(apart, place, strict=True)))
    ways = [
        abs(sum(s * a * x for s, a, x in zip(signs, apart, place, strict=True)))
        for signs in itertools.product((1, -1), repeat=4)
    ]
    assert found == pytest.approx(sum(w >= own - 1e-12 for w in ways) / 16)
    assert compare_trends(real, real)["p"].item() == 1.0
    assert np.isnan(compare_trends(real[:2], twin[:2])["p"].item())
    many = pd.DataFrame({"site": [str(i) for i in range(20)], "hoyer": np.arange(20.0)})
    flat = many.assign(hoyer=np.random.default_rng(0).normal(size=20))
    assert compare_trends(many, flat)["p"].item() < 0.05
