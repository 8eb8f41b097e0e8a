"""Values of other inputs: recorded, drawn, patched in."""

import pytest
import torch
from torch import nn

from condec.basis.errors import DataError, ModelError, OptionError, SiteError
from condec.edits import (
    Ablate,
    Donors,
    Patch,
    Preserve,
    edited,
    record_activation,
    unit_means,
)
from condec.network.sites import Site
from condec.network.tape import record
from condec.store.collection import collect
from condec.testing.contracts import EditContract
from condec.testing.models import small_mlp, small_resnet

SOURCE = torch.linspace(3.0, -2.0, 200).view(2, 4, 5, 5)


class TestPatchUnitsContract(EditContract):
    def make_edit(self, site):
        return Patch(site, source=SOURCE, units=[1, 2])


class TestPatchDirectionContract(EditContract):
    def make_edit(self, site):
        return Patch(site, source=SOURCE[:1], direction=[0.5, -1.0, 2.0, 0.25])


class TestAblateByOthersContract(EditContract):
    def make_edit(self, site):
        return Ablate(site, units=[3], replacement=SOURCE)


class TestPreserveByDrawsContract(EditContract):
    repeats = False

    def make_edit(self, site):
        return Preserve(site, units=[3], replacement=Donors(SOURCE, seed=1))


@pytest.mark.parametrize("site", ["block1", "block2:input", "head:input", "stem@positions"])
def test_patching_in_the_own_activation_changes_nothing(site):
    model, images = small_resnet(), torch.randn(3, 1, 5, 5)
    before, source = model(images), record_activation(model, images, site)
    n_units = Site.parse(site).units.count(source.shape) if "@" in site else source.shape[1]
    for part in ({"units": range(n_units)}, {"direction": torch.randn(n_units)}):
        with edited(model, Patch(site, source=source, **part)):
            assert torch.equal(model(images), before)


def test_patching_all_units_gives_the_other_input_s_output():
    model, images, others = small_resnet(), torch.randn(3, 1, 5, 5), torch.randn(3, 1, 5, 5)
    source = record_activation(model, others, "block1")
    with edited(model, Patch("block1", source=source, units=range(4))):
        assert torch.equal(model(images), model(others))
    single = record_activation(model, others[:1], "block1")
    with edited(model, Patch("block1", source=single, units=range(4))):
        torch.testing.assert_close(model(images), model(others[:1]).expand(3, -1))


def test_only_the_named_part_is_taken_over():
    activation, source = torch.randn(2, 6, 3, 3).double(), torch.randn(2, 6, 3, 3).double()
    units = Patch("x", source=source, units=[4, 1]).apply(activation)
    assert torch.equal(units[:, [1, 4]], source[:, [1, 4]])
    assert torch.equal(units[:, [0, 2, 3, 5]], activation[:, [0, 2, 3, 5]])
    assert torch.equal(units, Ablate("x", units=[1, 4], replacement=source).apply(activation))
    atom = torch.randn(6).double()
    along = Patch("x", source=source, direction=3 * atom).apply(activation)

    def component(h):
        return torch.einsum("bchw,c->bhw", h, atom / atom.norm())

    torch.testing.assert_close(component(along), component(source))
    rest = along - component(along)[:, None] * (atom / atom.norm())[:, None, None]
    kept = activation - component(activation)[:, None] * (atom / atom.norm())[:, None, None]
    torch.testing.assert_close(rest, kept)


def test_tokens_that_do_not_count_stay():
    activation, source = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    for part in ({"units": range(6)}, {"direction": torch.randn(6)}):
        out = Patch("x@features[1:]", source=source, **part).apply(activation)
        assert torch.equal(out[:, 0], activation[:, 0])
        assert not torch.equal(out[:, 1:], activation[:, 1:])


def test_recorded_rows_serve_whole_versions_of_their_batch():
    values = torch.randn(3, 5)
    edit = Ablate("x", units=range(5), replacement=values)
    assert torch.equal(edit.apply(torch.zeros(6, 5)), torch.cat([values, values]))
    one = Preserve("x", units=[0], replacement=values[:1]).apply(torch.zeros(4, 5))
    assert torch.equal(one[:, 1:], values[:1, 1:].expand(4, -1))
    for n_samples in (1, 2, 4, 0):
        with pytest.raises(SiteError, match=rf"recorded values of 3 samples.*got {n_samples} samp"):
            edit.apply(torch.zeros(n_samples, 5))


def test_edits_keep_a_copy_and_leave_the_caller_s_tensor_alone():
    values = torch.ones(2, 5)
    edit = Ablate("x", units=[0], replacement=values)
    values.zero_()
    assert edit.apply(torch.zeros(2, 5))[:, 0].tolist() == [1.0, 1.0]
    assert not edit.replacement.tensor.requires_grad


def test_draws_are_rows_of_the_pool_and_the_same_for_every_batch():
    pool = torch.arange(40.0).view(8, 5)
    edit = Ablate("x", units=range(5), replacement=Donors(pool, seed=4))
    drawn = edit.apply(torch.zeros(100, 5))
    assert {row[0] for row in drawn.tolist()} == {float(5 * i) for i in range(8)}
    assert torch.equal(drawn - drawn[:, :1], torch.arange(5.0).expand(100, -1))
    assert torch.equal(edit.apply(torch.ones(100, 5)), drawn)
    other = Ablate("x", units=range(5), replacement=Donors(pool, seed=5))
    assert not torch.equal(other.apply(torch.zeros(100, 5)), drawn)


def test_what_is_recorded_is_what_the_tape_sees():
    model, x = small_mlp(), torch.randn(4, 5, requires_grad=True)
    found = record_activation(model, x, "2:input")
    with record(model, [Site("1")]) as tape:
        model(x)
    assert torch.equal(found, tape.records["1"])
    assert not found.requires_grad
    with edited(model, Ablate("1", units=[0], replacement=2.0)):
        assert record_activation(model, x, "2:input")[:, 0].tolist() == [2.0] * 4
    assert record_activation(model.double(), torch.ones(1, 5), "1").dtype == torch.float64


def test_means_are_per_position_and_of_the_rows_and_label_asked_for(tmp_path):
    model, x = small_resnet(), torch.randn(7, 1, 5, 5)
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    store = collect(model, (x, labels), "relu", out=tmp_path / "s", progress=False)
    activation = record_activation(model, x, "relu")
    rows = torch.arange(7) < 4
    torch.testing.assert_close(unit_means(store, "relu"), activation.mean((0, 2, 3)))
    torch.testing.assert_close(unit_means(store, "relu", rows), activation[:4].mean((0, 2, 3)))
    torch.testing.assert_close(
        unit_means(store, "relu", label=1), activation[labels == 1].mean((0, 2, 3))
    )
    torch.testing.assert_close(
        unit_means(store, "relu", rows, label=0), activation[[0, 3]].mean((0, 2, 3))
    )
    with pytest.raises(DataError, match="no sample of label 5 to take the mean of"):
        unit_means(store, "relu", label=5)
    with pytest.raises(DataError, match="no sample to take the mean of"):
        unit_means(store, "relu", rows & ~rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Patch("x", source=SOURCE), r"Patch\(x\): name units, or a direction.*got none"),
        (lambda: Patch("x", source=SOURCE, units=[0], direction=[1.0]), "one of the two; got both"),
        (lambda: Patch("x", source=SOURCE, units=[]), r"Patch\(x\): units is empty"),
        (lambda: Patch("x", source=SOURCE, direction=[0.0]), "direction has no length"),
        (lambda: Patch("x", source=None, units=[0]), "expected a tensor of activations.*NoneType"),
        (lambda: Donors(torch.ones(3)), r"Donors: expected activations.*got shape \(3,\)"),
        (lambda: Donors(torch.ones(0, 3)), r"expected activations.*got shape \(0, 3\)"),
        (lambda: Donors(torch.ones(2, 3, dtype=torch.int64)), "Donors: .*torch.int64"),
        (lambda: Donors(torch.full((2, 2), torch.nan)), "must be finite; the tensor holds NaN"),
    ],
)
def test_bad_sources(unchecked, make, message):
    with pytest.raises(OptionError, match=message):
        make()


def test_source_of_another_shape():
    edit = Patch("x", source=SOURCE, units=[0])
    with pytest.raises(SiteError, match=r"of the shape at the site, \[sample, 4, 3, 3\]; got \(2"):
        edit.apply(torch.ones(2, 4, 3, 3))
    with pytest.raises(SiteError, match=r"Patch\(x\): the site has 4 units.*no unit 7"):
        Patch("x", source=SOURCE, units=[7]).apply(torch.ones(2, 4, 5, 5))
    with pytest.raises(OptionError, match=r"the site's 4 units; got 2"):
        Patch("x", source=SOURCE, direction=[1.0, 2.0]).apply(torch.ones(2, 4, 5, 5))
    with pytest.raises(SiteError, match="heads have no direction"):
        Patch("x@heads(2)", source=torch.ones(1, 2, 4), direction=[1.0, 2.0]).apply(
            torch.ones(1, 2, 4)
        )


def test_recording_needs_one_site_and_evaluation_mode():
    with pytest.raises(SiteError, match=r"expected one site; 'block\*' matches 2: block1, block2"):
        record_activation(small_resnet(), torch.ones(1, 1, 5, 5), "block*")
    with pytest.raises(ModelError, match="training mode"):
        record_activation(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2), "0")
