"""Agreement of contributions with ablation: exact where it must be, nothing where it must not."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from condec.attribution import ActGrad, Gradient, UnitAblation
from condec.attribution.ablation_check import agreement, faithfulness
from condec.attribution.contributions import Contributions, contribute
from condec.attribution.targets import Label, Logit, Predicted
from condec.basis.errors import DataError, OptionError
from condec.network.sites import Site, Units
from condec.testing.models import small_mlp, small_resnet


def wide_mlp(units: int = 40) -> nn.Module:
    """Nonlinear up to module 1, linear from there on."""
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Linear(5, units), nn.Tanh(), nn.Linear(units, units), nn.Linear(units, 3)
    ).eval()


def slow_ranks(values: list[float]) -> list[float]:
    """One plus the number of smaller values, plus half the number of other equal ones."""
    return [
        1 + sum(w < v for w in values) + 0.5 * (sum(w == v for w in values) - 1) for v in values
    ]


def slow_correlation(a: list[float], b: list[float]) -> float:
    n = len(a)
    ma, mb = sum(a) / n, sum(b) / n
    top = sum((x - ma) * (y - mb) for x, y in zip(a, b, strict=True))
    bottom = (sum((x - ma) ** 2 for x in a) * sum((y - mb) ** 2 for y in b)) ** 0.5
    return top / bottom if bottom else math.nan


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 7), st.booleans())
def test_agreement_equals_the_loop(seed: int, n_units: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 3, n_units, generator=generator, dtype=torch.float64)
    if ties:
        a, b = a.round(), b.round()
    top_k = max(1, round(0.4 * n_units))
    for i in range(3):
        x, y = a[i].tolist(), b[i].tolist()
        found = agreement(a[i : i + 1], b[i : i + 1], top=0.4)
        assert found["top_k"] == top_k
        if len(set(x)) == 1 or len(set(y)) == 1:
            assert math.isnan(found["spearman_median"])
            assert math.isnan(found["pearson_median"])
            continue
        assert found["pearson_median"] == pytest.approx(slow_correlation(x, y), abs=1e-9)
        ranked = slow_correlation(slow_ranks(x), slow_ranks(y))
        for quantile in ("median", "q25", "q75"):
            assert found[f"spearman_{quantile}"] == pytest.approx(ranked, abs=1e-9)
        if not ties:
            order = [sorted(range(n_units), key=lambda u, v=v: -abs(v[u])) for v in (x, y)]
            shared = set(order[0][:top_k]) & set(order[1][:top_k])
            assert found["top_overlap"] == pytest.approx(len(shared) / top_k)
    flat = slow_correlation(slow_ranks(a.flatten().tolist()), slow_ranks(b.flatten().tolist()))
    assert agreement(a, b)["spearman_pooled"] == pytest.approx(flat, abs=1e-9, nan_ok=True)


def test_transposed_quantities_agree_as_their_copies_do() -> None:
    a, b = torch.randn(7, 5).double().T, torch.randn(7, 5).double().T
    found, wanted = agreement(a, b), agreement(a.contiguous(), b.contiguous())
    assert found == wanted


def test_act_grad_is_exact_where_the_network_is_linear() -> None:
    x = torch.randn(12, 5)
    batch = contribute(wide_mlp(), x, "1, 2", method=ActGrad(), target=Predicted())
    table = faithfulness(batch)
    assert table["site"].tolist() == ["1", "2"]
    for column in ("spearman_median", "spearman_q25", "spearman_pooled", "pearson_median"):
        assert (table[column] > 0.999).all(), column
    assert (table["top_overlap"] > 0.99).all()
    assert (table["top_k"] == 4).all()
    assert (table["n_defined"] == 12).all()


def shuffled(batch: Contributions) -> Contributions:
    """Random contributions in place of the true ones."""
    parts = tuple(
        replace(part, contribution=torch.randn_like(part.contribution)) for part in batch.by_site
    )
    return replace(batch, by_site=parts)


def test_random_contributions_tell_nothing() -> None:
    batch = contribute(wide_mlp(), torch.randn(60, 5), "1", method=ActGrad(), target=Predicted())
    row = faithfulness(shuffled(batch)).iloc[0]
    assert abs(row["spearman_median"]) < 0.1
    assert abs(row["spearman_pooled"]) < 0.1
    assert row["top_overlap"] < 0.2


def test_reduced_and_full_contributions_give_one_table() -> None:
    images = torch.randn(6, 1, 5, 5)
    batch = contribute(small_resnet(), images, "block*, head", target=Label(), labels=LABELS)
    pd.testing.assert_frame_equal(faithfulness(batch), faithfulness(batch.reduce()), rtol=1e-4)


LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class TwoTokens(nn.Module):
    """Full records [sample, 2 tokens, feature] have the shape of reduced ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).flatten(1))


@pytest.mark.parametrize("units", [Units("features"), Units("tokens")])
def test_records_of_two_tokens_are_not_taken_for_reduced_ones(units: Units) -> None:
    batch = contribute(
        TwoTokens().eval(), torch.randn(9, 2, 3), Site("a", units=units), method=ActGrad(),
        target=Logit(1),
    )  # fmt: skip
    for either in (batch, batch.reduce()):
        assert faithfulness(either)["spearman_pooled"][0] > 0.999


def test_units_of_large_sites_are_drawn() -> None:
    batch = contribute(wide_mlp(), torch.randn(8, 5), "1", method=Gradient(), target=Logit(0))
    all_units, some, again, other = (
        faithfulness(batch, max_units=number, seed=seed)
        for number, seed in ((None, 0), (9, 0), (9, 0), (9, 1))
    )
    assert all_units["units_tested"][0] == all_units["units"][0] == 40
    assert some["units_tested"][0] == 9
    assert some["units"][0] == 40
    pd.testing.assert_frame_equal(some, again)
    assert some["spearman_pooled"][0] != other["spearman_pooled"][0]


def test_the_given_ablation_is_used() -> None:
    """Effects of replacing by the mean differ from those of zero."""
    batch = contribute(wide_mlp(), torch.randn(8, 5) + 3, "1", method=ActGrad(), target=Logit(0))
    zero, mean = faithfulness(batch), faithfulness(batch, ablation=UnitAblation(replacement="mean"))
    assert zero["spearman_median"][0] > 0.999
    assert mean["spearman_median"][0] < 0.9


def test_units_without_effect_leave_no_sample_defined() -> None:
    model = wide_mlp()
    batch = contribute(model, torch.randn(4, 5), "1", method=ActGrad(), target=Logit(0))
    flat = replace(
        batch,
        by_site=(replace(batch["1"], contribution=torch.zeros_like(batch["1"].contribution)),),
    )
    row = faithfulness(flat).iloc[0]
    assert row["n_defined"] == 0
    assert row["n_samples"] == 4
    assert row[["spearman_median", "spearman_q25", "pearson_median"]].isna().all()


def test_contributions_remember_what_they_were_made_from() -> None:
    model, x = small_mlp(), torch.randn(3, 5)
    batch = contribute(model, x, "1", method=ActGrad(), target=Logit(0))
    assert batch.setup is not None
    assert batch.setup.model is model
    assert batch.setup.inputs.data_ptr() == x.data_ptr()
    assert batch.setup.target == Logit(0)
    assert batch.reduce().setup is batch.setup


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda b: faithfulness(replace(b, setup=None)), DataError, "which model and inputs"),
        (lambda b: faithfulness(b, max_units=1), OptionError, "max_units must be at least 2"),
        (lambda b: faithfulness(b, top=0.0), OptionError, "top: expected a share above 0"),
        (lambda b: faithfulness(b, top=1.5), OptionError, "top: expected .* got 1.5"),
    ],
)
def test_bad_requests_are_explained(call, error, message) -> None:  # type: ignore[no-untyped-def]
    batch = contribute(small_mlp(), torch.randn(3, 5), "1", method=ActGrad())
    with pytest.raises(error, match=message):
        call(batch)
