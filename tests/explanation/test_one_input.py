"""Explanations: parts of modes that add up to the output."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import condec
from condec.network import PackedInput
from condec.testing.models import small_resnet


@pytest.fixture(scope="module")
def model():
    return small_resnet().double()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(30, 1, 8, 8, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def store(model, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("explain") / "store"
    return condec.collect(
        model, images, "block*", out=out, target=condec.Predicted(), progress=False,
        rows="positions", keep=64,
    )  # fmt: skip


def modes_of(store, site, sign, learner=None, quantity="contribution", name="modes", **rows):
    matrix = store.matrix(site, quantity, sign, **rows)
    fitted = condec.fit(learner or condec.PCA(n_modes=3), matrix)
    return condec.Modes.build(
        fitted.dictionary, store, site, sign, quantity=quantity, name=name, **rows
    )


CASES = {
    "positive": ("positive", condec.PCA(n_modes=3)),
    "negative": ("negative", condec.PCA(n_modes=2)),
    "sum": ("sum", condec.PCA(n_modes=3)),
    "concat": ("concat", condec.PCA(n_modes=3)),
    "k means": ("positive", condec.KMeans(n_modes=2)),
}


@pytest.mark.parametrize("rows", ["samples", "positions"])
@pytest.mark.parametrize("case", CASES)
def test_parts_add_up_to_the_change_of_the_target(model, images, store, case, rows):
    sign, learner = CASES[case]
    modes = [modes_of(store, site, sign, learner, rows=rows) for site in ("block1", "block2")]
    found = condec.explain(model, images[:1], modes, n_modes=2)
    frame = found.to_frame()
    for at in found.by_site:
        rows = frame[frame["site"] == at.site.key]
        assert rows["net"].sum() == pytest.approx(found.change, abs=1e-10)
        assert rows["share"].sum() == pytest.approx(1, abs=1e-9)
        assert sum(part.net for part in at.parts) == pytest.approx(float(at.contribution.sum()))
        torch.testing.assert_close(
            torch.stack([p.weights for p in at.parts]).sum(0), torch.ones_like(at.contribution)
        )
        for part in at.parts:
            assert float(part.places.sum()) == pytest.approx(part.net, abs=1e-12)
            assert part.adds >= 0 >= part.takes
            assert 0 <= float(part.weights.min()) <= float(part.weights.max()) <= 1 + 1e-12


def test_modes_of_places_answer_position_by_position(model, images, store):
    modes = modes_of(store, "block2", "positive", condec.NMF(3), rows="positions")
    at = condec.explain(model, images[:1], modes).by_site[0]
    (shares,), entries = at.shares, at.contribution.flatten(1)
    for position in (0, 9, 63):
        row = entries[:, position].clamp(min=0)
        loading = modes.encoder.encode(row.float()[None])[0].double()
        torch.testing.assert_close(shares.loadings[position], loading)
        said = loading[:, None] * modes.encoder.atoms.double()
        part = (said / said.sum(0)).nan_to_num(0.0)
        own = shares.weights([0, 1, 2]).flatten(2)[..., position]
        torch.testing.assert_close(own, part * (row > 0))
    part = at.modes[0]
    kept = modes.loadings[0, modes.ids.tolist().index(part.id)]
    assert part.loading == pytest.approx(float(kept), rel=1e-4)


def test_two_dictionaries_of_one_sign_each_stand_beside_each_other(model, images, store):
    up, down = (modes_of(store, "block2", sign, name=sign) for sign in ("positive", "negative"))
    at = condec.explain(model, images[:1], [up, down]).by_site[0]
    assert {part.modes.name for part in at.modes} == {"positive", "negative"}
    assert all(part.takes == 0 for part in at.modes if part.modes is up)
    assert all(part.adds == 0 for part in at.modes if part.modes is down)
    assert all(part.name.endswith(f"({part.modes.name})") for part in at.modes)


def test_two_dictionaries_of_one_name_are_told_apart_by_their_signs(model, images, store):
    several = [modes_of(store, "block2", sign, name="modes") for sign in ("positive", "negative")]
    at = condec.explain(model, images[:1], several).by_site[0]
    names = [part.name for part in at.parts]
    assert len({*names}) == len(names)
    assert all(part.name.endswith(f"(modes, {part.modes.sign})") for part in at.modes)
    assert at.part(names[0]) is at.parts[0]


def test_what_a_dictionary_does_not_describe_is_left_over(model, images, store):
    at = condec.explain(model, images[:1], modes_of(store, "block2", "positive")).by_site[0]
    negative = float(at.contribution.clamp(max=0).sum())
    assert at.part("left over").takes == pytest.approx(negative)
    assert sum(part.takes for part in at.modes) == 0


def test_shares_of_all_modes_are_the_sums_of_their_weights(model, images, store):
    at = condec.explain(model, images[:1], modes_of(store, "block1", "sum", condec.PCA(3))).by_site[
        0
    ]
    (shares,) = at.shares
    own = shares.weights([0, 1, 2]) * at.contribution
    torch.testing.assert_close(shares.adds, own.clamp(min=0).flatten(1).sum(1))
    torch.testing.assert_close(shares.takes, own.clamp(max=0).flatten(1).sum(1))


def test_parts_are_taken_away_and_the_target_falls(model, images, store):
    modes = [modes_of(store, site, "positive") for site in ("block1", "block2")]
    checked = condec.explain(model, images[:1], modes).check()
    assert list(dict.fromkeys(checked.frame["site"])) == ["block1", "block2"]
    assert list(checked.summary["removed"]) == ["part", "units"] * 2


def test_without_a_part_a_linear_networks_target_falls_by_its_contribution(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)).double().eval()
    x, target = torch.rand(25, 5, dtype=torch.float64), condec.Logit(1)
    store = condec.collect(model, x, "0", out=tmp_path / "store", target=target, progress=False)
    modes = modes_of(store, "0", "sum", condec.PCA(3))
    frame = condec.explain(model, x[:1], modes).check().frame
    torch.testing.assert_close(
        torch.tensor(frame["said"].to_numpy()), torch.tensor(frame["part_removed"].to_numpy())
    )


def test_a_model_that_takes_no_single_input_is_checked_as_another(tmp_path):
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.of = small_resnet()

        def forward(self, x):
            assert len(x) > 1
            return self.of(x)

    x, found = torch.rand(12, 1, 8, 8), []
    for name, model, site in (("one", small_resnet(), "block1"), ("two", Pairs(), "of.block1")):
        store = condec.collect(model.eval(), x, site, out=tmp_path / name, progress=False)
        made = condec.explain(model, x[:1], modes_of(store, site, "concat"))
        maps = condec.mode_map(model, x[:1], site, weights=torch.eye(4)[:3])
        found.append([*made.check().frame["units_removed"], *maps.total.flatten().tolist()])
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_a_mode_that_goes_with_no_label_has_none(model, images, tmp_path):
    data = images, torch.zeros(len(images), dtype=torch.int64)
    store = condec.collect(model, data, "block2", out=tmp_path / "alike", progress=False)
    found = condec.explain(model, images[:1], modes_of(store, "block2", "positive"))
    assert found["block2"].modes[0].best_label()[0] == -1


class Padded(PackedInput):
    """Tokens, of which the last channel says which are real."""

    def __init__(self):
        super().__init__()
        self.block, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def fixed(self, inputs):
        return None

    def real(self, inputs):
        return inputs[..., -1] == 1

    def forward(self, x):
        return self.head((self.block(x).tanh() * x[..., -1:]).sum(1))


def test_padding_has_no_loading(tmp_path):
    x = torch.rand(20, 5, 4, generator=torch.Generator().manual_seed(0))
    x[..., -1] = (torch.arange(5) < 5 - torch.arange(20)[:, None] % 3).float()
    model = Padded().eval()
    store = condec.collect(
        model, x, "block", out=tmp_path / "store", target=condec.Logit(0), progress=False,
        rows="positions", keep=5,
    )  # fmt: skip
    modes = modes_of(store, "block", "sum", condec.PCA(3), rows="positions")
    for row in (1, 2):
        parts = condec.explain(model, x[row : row + 1], modes)["block"].modes
        said = {part.id: part.loading for part in parts}
        kept = dict(zip(modes.ids.tolist(), modes.loadings[row].tolist(), strict=True))
        assert said == pytest.approx({mode: kept[mode] for mode in said}, abs=1e-5)


def test_bad_inputs_are_refused(model, images, store):
    modes = modes_of(store, "block2", "positive")
    with pytest.raises(condec.DataError, match=r"batch of one.*\(2, 1, 8, 8\)"):
        condec.explain(model, images[:2], modes)
    for wrong in (condec.data.as_inputs(images), "photo.png", {"a": images, "b": images}):
        with pytest.raises(condec.DataError, match=r"explain: (expected one|inputs are not)"):
            condec.explain(model, wrong, modes)
    with pytest.raises(condec.DataError, match="empty; expected at least one sample"):
        condec.flow(model, images[:0], modes)
    with pytest.raises(condec.DataError, match="no modes are given"):
        condec.explain(model, images[:1], [])
    with pytest.raises(condec.OptionError, match="both describe positive contributions"):
        condec.explain(model, images[:1], [modes, modes_of(store, "block2", "sum", condec.PCA(2))])
    active = replace(modes, quantity="activation", sign="negative", name="active")
    with pytest.raises(condec.OptionError, match=r"'active' of activations.*count twice"):
        condec.explain(model, images[:1], [modes, active])
    with pytest.raises(condec.OptionError, match="n_modes must be at least 1"):
        condec.explain(model, images[:1], modes, n_modes=0)
    with pytest.warns(UserWarning, match="from another model"):
        condec.explain(small_resnet(), images[:1].float(), modes)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        condec.explain(model, torch.zeros_like(images[:1]), modes)
    words = " ".join(str(one.message) for one in said)
    assert "the target changes by 0" in words
    assert "no mode answers for anything at this input" in words
