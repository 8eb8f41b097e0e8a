"""R2 of fields over time: what determines them scores 1, what has no say scores 0."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from condec.basis.errors import DataError, OptionError
from condec.data import as_inputs
from condec.retina import explained
from condec.retina.combinations import fields_of_combinations
from condec.retina.explained import COMPARED, MODES, explained_variance, pooled_stimulus
from condec.retina.fields import ReceptiveFields, receptive_fields

COURSE = torch.tensor([-0.2, 0.4, 1.0])


def smooth(n: int, columns: int, seed: int = 0, length: int = 7) -> Tensor:
    """Columns that last for some frames, and are often 0."""
    noise = torch.randn(columns, 1, n, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool1d(noise, length, 1, length // 2)[:, 0].T.clamp(min=0.0)


def fields_of(pictures: Tensor) -> ReceptiveFields:
    """From pictures [sample, cell, y, x], as they are: not of length 1."""
    n, cells = pictures.shape[:2]
    return ReceptiveFields(
        spatial=pictures,
        temporal=(COURSE / COURSE.norm()).expand(n, cells, 3).clone(),
        strength=torch.ones(n, cells),
        separability=torch.ones(n, cells),
        rows=torch.arange(n),
        cells=torch.arange(cells) + 4,
        corners=torch.zeros(cells, 2, dtype=torch.int64),
    )


def planted(n: int = 200, modes: int = 3) -> tuple[ReceptiveFields, Tensor]:
    """Fields of two cells that loadings determine; the sign of the first turns over."""
    loadings = smooth(n, modes)
    gen = torch.Generator().manual_seed(9)
    weights = torch.randn(modes, 2, 4, 4, generator=gen)
    base = 0.2 * torch.randn(2, 4, 4, generator=gen)
    return fields_of(torch.einsum("sm,mcyx->scyx", loadings, weights) + base), loadings


def scores(table, column: str = "r2") -> dict[str, list[float]]:
    return {name: part[column].tolist() for name, part in table.groupby("predictor")}


# --- what it says -------------------------------------------------------------------------


class Gated(nn.Module):
    """A cell that draws on one picture always, and on another with a sign that a gate sets."""

    def forward(self, clips: Tensor) -> Tensor:
        gate = clips[:, 0, 0, 0].detach().sign()
        always, gated = clips[:, 2, 1:3, 1:3].mean((1, 2)), clips[:, 2, 3:5, 3:5].mean((1, 2))
        return (always + 3 * gate * gated)[:, None]


def test_a_gate_is_found_from_model_to_score() -> None:
    clips = torch.randn(90, 3, 6, 6)
    open_ = (clips[:, 0, 0, 0] > 0).float()[:, None]
    fields = receptive_fields(Gated().eval(), as_inputs(clips))
    table = explained_variance(
        fields, open_, pooled_stimulus(as_inputs(clips), fields.rows), n_bootstrap=50
    )
    assert scores(table)[MODES] == pytest.approx([1], abs=1e-6)
    assert float(table["lead_low"].min()) > 0.3
    means = fields_of_combinations(fields, open_)
    here = means.spatial[:, 0, 3, 3] / means.spatial[:, 0, 1, 1]
    wanted = [3 if modes else -3 for modes in means.combinations]
    assert here.tolist() == pytest.approx(wanted, abs=1e-4)


def test_loadings_that_determine_the_field_explain_all_of_it() -> None:
    fields, loadings = planted()
    table = explained_variance(fields, loadings, smooth(200, 9, 5), smooth(200, 2, 6))
    assert table["predictor"].tolist() == list(COMPARED) * 2
    assert table["compared"].tolist() == list(COMPARED.values()) * 2
    assert table["cell"].tolist() == [4] * 6 + [5] * 6
    widths = dict(zip(table["predictor"], table["n_predictors"], strict=True))
    assert widths == {name: 2 if name == "activation components" else 3 for name in COMPARED}
    found = scores(table)
    assert found[MODES] == pytest.approx([1, 1], abs=1e-6)
    for name in set(COMPARED) - {MODES}:
        assert max(found[name]) < 0.15, name
    others = table[table["predictor"] != MODES]
    assert others["lead"].tolist() == pytest.approx((1 - others["r2"]).tolist(), abs=1e-6)
    assert (others["lead_low"] > 0.5).all()
    assert table[table["predictor"] == MODES]["lead"].isna().all()


def test_shifted_loadings_explain_nothing() -> None:
    shifted = []
    for seed in range(4):
        fields, loadings = planted(300)
        table = explained_variance(fields, loadings, n_shifts=3, n_bootstrap=0, seed=seed)
        shifted += scores(table)["shifted modes"]
    # 24 predictions of noise: none is good, and on average they are no better than the mean.
    assert max(shifted) < 0.1
    assert sum(shifted) / len(shifted) <= 0.01


def test_what_determines_the_field_is_told_from_the_rest() -> None:
    """Fields that follow the stimulus, or its clusters, and not the modes."""
    stimulus = smooth(200, 8, 3)
    components = torch.linalg.svd(stimulus - stimulus.mean(0), full_matrices=False)
    leading = stimulus @ components.Vh[:2].T
    gen = torch.Generator().manual_seed(2)
    weights = torch.randn(2, 1, 3, 3, generator=gen)
    pictures = torch.einsum("sk,kcyx->scyx", leading, weights) + 0.1
    loadings = smooth(200, 2, 8)
    found = scores(explained_variance(fields_of(pictures), loadings, stimulus, n_bootstrap=0))
    assert found["stimulus components"] == pytest.approx([1], abs=1e-5)
    assert found[MODES][0] < 0.2
    assert "activation clusters" not in found

    kinds = torch.arange(200) // 5 % 2
    activations = 100 * kinds[:, None] + torch.randn(200, 6, generator=gen)
    pictures = torch.randn(2, 1, 3, 3, generator=gen)[kinds]
    found = scores(
        explained_variance(fields_of(pictures), loadings, None, activations, n_bootstrap=0)
    )
    assert found["activation clusters"] == pytest.approx([1], abs=1e-6)
    assert "stimulus clusters" not in found


def test_a_gain_is_no_part_of_the_picture() -> None:
    """The first mode multiplies the field, the second turns it over."""
    loadings = smooth(200, 2)
    gain, sign = 1 + loadings[:, 0], torch.where(loadings[:, 1] > 0, 1.0, -1.0)
    fields = fields_of(sign[:, None, None, None] * torch.randn(1, 4, 4))
    fields = replace(fields, strength=gain[:, None])
    options = {"n_shifts": 0, "n_bootstrap": 0}
    turned = explained_variance(fields, (sign > 0).float()[:, None], **options)
    assert turned["r2"].tolist() == pytest.approx([1], abs=1e-6)
    alone = explained_variance(fields, loadings[:, :1], **options)
    assert float(alone["r2"].iloc[0]) < 0.2


def test_units_of_loadings_and_modes_that_never_vary_do_not_matter() -> None:
    fields, loadings = planted(100)
    noisy = loadings + 0.3 * smooth(100, 3, 7)
    one = explained_variance(fields, noisy, n_bootstrap=0)
    other = torch.cat((noisy * torch.tensor([1e-3, 5.0, 40.0]), torch.ones(100, 1)), 1)
    two = explained_variance(fields, other, n_bootstrap=0)
    assert 0.2 < one["r2"].max() < 0.99
    assert two["r2"].tolist() == pytest.approx(one["r2"].tolist(), abs=1e-4)


def test_a_stimulus_of_more_entries_than_frames_is_turned_not_lost() -> None:
    fields, loadings = planted(60)
    narrow = smooth(60, 5, 3)
    wide = narrow @ torch.linalg.qr(torch.randn(90, 5)).Q.T  # the same distances
    one, two = (
        scores(explained_variance(fields, loadings, s, n_bootstrap=0)) for s in (narrow, wide)
    )
    for name in ("stimulus components", "stimulus clusters"):
        assert two[name] == pytest.approx(one[name], abs=1e-4)


def test_signs_that_jump_between_lobes_do_not_matter() -> None:
    fields, loadings = planted(100)
    flip = torch.where(torch.rand(100, 2) < 0.5, -1.0, 1.0)[..., None]
    jumping = replace(
        fields, spatial=fields.spatial * flip[..., None], temporal=fields.temporal * flip
    )
    one, two = (explained_variance(each, loadings, n_bootstrap=0) for each in (fields, jumping))
    assert two["r2"].tolist() == pytest.approx(one["r2"].tolist(), abs=1e-6)


def test_frames_that_share_a_clip_are_not_fitted() -> None:
    """Columns that say which frames are in a clip tell of neighbours, and of nobody else."""
    n = 72
    age = torch.arange(n)[:, None] - torch.arange(n)
    inside = ((age >= 0) & (age < 3)).float()
    fields = fields_of(torch.randn(n, 1, 3, 3).cumsum(0))
    options = {"folds": n // 4, "n_shifts": 0, "n_bootstrap": 0}
    apart = explained_variance(fields, inside, **options)
    shorter = replace(fields, temporal=torch.ones(n, 1, 1))  # as if clips were of one frame
    near = explained_variance(shorter, inside, **options)
    assert float(apart["r2"].iloc[0]) < 0.05
    assert float(near["r2"].iloc[0]) > 0.4


def test_intervals_hold_the_score_and_depend_on_the_seed_alone() -> None:
    fields, loadings = planted(100)
    noisy = loadings + 0.3 * smooth(100, 3, 7)
    table = explained_variance(fields, noisy, n_bootstrap=100, seed=1)
    mine = table[table["predictor"] == MODES]
    assert (mine["r2_low"] < mine["r2"]).all()
    assert (mine["r2"] < mine["r2_high"]).all()
    assert table.equals(explained_variance(fields, noisy, n_bootstrap=100, seed=1))
    none = explained_variance(fields, noisy, n_bootstrap=0)
    assert none[["r2_low", "r2_high", "lead_low", "lead_high"]].isna().all(axis=None)


def test_a_field_that_never_changes_has_no_score() -> None:
    pictures = planted(100)[0].spatial.clone()
    pictures[:, 1] = pictures[0, 1]
    table = explained_variance(fields_of(pictures), planted(100)[1])
    still = table["cell"] == 5
    assert table[still][["r2", "r2_low", "lead"]].isna().all(axis=None)
    assert table[~still]["r2"].notna().all()


# --- stimulus -----------------------------------------------------------------------------


def test_pooled_stimulus_is_the_mean_over_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    clips, rows = torch.randn(5, 4, 6, 6), torch.tensor([3, 0, 1])
    # Smaller than the boxes.
    assert pooled_stimulus(as_inputs(clips), rows).equal(clips.flatten(1)[rows])
    monkeypatch.setattr(explained, "_BOXES", (2, 3, 3))
    monkeypatch.setattr(explained, "_CLIPS", 2)
    boxes = clips.reshape(5, 2, 2, 3, 2, 3, 2).mean((2, 4, 6)).flatten(1)
    torch.testing.assert_close(pooled_stimulus(as_inputs(clips), rows), boxes[rows])


def test_pooled_stimulus_refuses() -> None:
    with pytest.raises(DataError, match=r"clips of shape \[history, y, x\]; .* \(6, 6\)"):
        pooled_stimulus(as_inputs(torch.randn(2, 6, 6)), torch.arange(2))


# --- what is refused ----------------------------------------------------------------------


def test_explained_variance_refuses(unchecked: None) -> None:
    fields, loadings = planted(40)
    for name, wrong, least in (("folds", 1, 2), ("n_shifts", -1, 0), ("n_bootstrap", -1, 0)):
        with pytest.raises(OptionError, match=f"{name} must be at least {least}; got {wrong}"):
            explained_variance(fields, loadings, **{name: wrong})
    with pytest.raises(DataError, match=r"loadings of 39 frames, fields of 40; give loadings\["):
        explained_variance(fields, loadings[1:])
    with pytest.raises(DataError, match="stimulus of 39 frames"):
        explained_variance(fields, loadings, loadings[1:])
    bad = loadings.clone()
    bad[7, 0] = math.nan
    with pytest.raises(DataError, match=r"activations: 1 of 40 rows hold NaN .* \[7\]"):
        explained_variance(fields, loadings, None, bad)
    with pytest.raises(DataError, match="none of 2 modes varies over 40 frames"):
        explained_variance(fields, torch.ones(40, 2))
    order = torch.arange(40).flip(0)
    with pytest.raises(DataError, match="not in the order of time"):
        explained_variance(fields.select(order), loadings)
    with pytest.raises(DataError, match=r"7 frames are too few for 5 blocks with 3 frames"):
        explained_variance(fields.select(range(7)), loadings[:7])
