import pytest
import torch

from condec.basis.errors import DataError, OptionError
from condec.dictionary import NMF, PCA, KMeans, Preparation, TrainConfig, fit, load_dictionary
from condec.dictionary.fitting.preparation import Moments


def _rows():
    units = torch.tensor([1.0, 10.0, 0.1, 3.0, 0.0])
    made = torch.Generator().manual_seed(0)
    return units * torch.rand(80, 5, generator=made) + torch.tensor([5.0, 0.0, 0.0, -2.0, 7.0])


@pytest.mark.parametrize("scaling", ["global", "unit", "none"])
@pytest.mark.parametrize("centre", [False, True])
def test_decoding_undoes_what_encoding_does(scaling, centre, tmp_path):
    config = TrainConfig(scaling=scaling, centre=centre)
    report = fit(KMeans(4), _rows(), config=config)
    dictionary = report.dictionary
    loadings = dictionary.encode(_rows())
    found = dictionary.decode(loadings)
    # A centre is the mean of its rows, in whatever units it was found.
    train = report.train_rows
    for mode in range(4):
        of_mode = train[loadings[train, mode] > 0]
        expected = _rows()[of_mode].mean(0).expand(len(of_mode), 5)
        torch.testing.assert_close(found[of_mode], expected, rtol=1e-4, atol=1e-4)
    report.save(tmp_path)
    again = load_dictionary(tmp_path)
    assert torch.equal(again.encode(_rows()), loadings)
    assert torch.equal(again.decode(loadings), found)
    torch.testing.assert_close(dictionary.decode(torch.zeros(1, 4))[0], dictionary.offset)


def test_prepared_rows_have_mean_0_and_standard_deviation_1():
    rows = _rows()
    prepared = Preparation.fitted(Moments.of(rows), "unit", True).apply(rows)
    torch.testing.assert_close(prepared.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    spread = prepared.std(0, correction=0)
    torch.testing.assert_close(spread, torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]), rtol=1e-4, atol=0)
    whole = Preparation.fitted(Moments.of(rows), "global", True).apply(rows)
    assert float(whole.square().mean()) == pytest.approx(1.0, rel=1e-5)
    plain = Preparation.fitted(Moments.of(rows), "none", False)
    assert torch.equal(plain.apply(rows), rows)
    back = Preparation.fitted(Moments.of(rows), "unit", True)
    torch.testing.assert_close(back.restore(back.apply(rows)), rows)


def test_default_adds_nothing_to_the_file():
    dictionary = fit(PCA(2), _rows()).dictionary
    assert sorted(dictionary.tensors) == ["atoms", "offset"]
    assert dictionary.preparation.centre is None
    assert dictionary.preparation.unit_scale is None


def test_held_out_rows_have_no_part():
    rows, config = _rows(), TrainConfig(scaling="unit", centre=True)
    first = fit(PCA(2), rows, config=config)
    changed = rows.clone()
    changed[first.held_out_rows] *= 100.0
    second = fit(PCA(2), changed, config=config)
    for name, tensor in first.dictionary.tensors.items():
        assert torch.equal(tensor, second.dictionary.tensors[name]), name


def test_scale_of_units_matters_to_principal_components_unless_it_is_taken_out():
    by_unit = fit(PCA(1), _rows(), config=TrainConfig(scaling="unit")).dictionary
    as_is = fit(PCA(1), _rows()).dictionary
    # The second unit varies most by far: the one component is that unit, or not.
    assert float(as_is.atoms[0].abs().argmax()) == 1
    assert float((as_is.atoms[0] / as_is.atoms[0].norm())[1].abs()) > 0.99
    assert float(by_unit.tensors["atoms"][0].abs()[1]) < 0.99


def test_centred_rows_are_not_for_nmf():
    rows = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(DataError, match=r"NMF: fit: .* must have one sign.*centre=False"):
        fit(NMF(2), rows, config=TrainConfig(centre=True))


def test_format_1_is_still_read(tmp_path):
    import json

    report = fit(PCA(2), _rows())
    report.save(tmp_path)
    record = json.loads((tmp_path / "dictionary.json").read_text())
    for name in ("clip", "scaling", "centre", "freeze"):
        record["training"]["config"].pop(name)
    (tmp_path / "dictionary.json").write_text(json.dumps(record | {"format": 1}))
    again = load_dictionary(tmp_path)
    assert torch.equal(again.encode(_rows()), report.dictionary.encode(_rows()))
    assert again.training.config.scaling == "global"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling": "row"}, "scaling must be one of global, unit, none; got 'row'"),
        ({"clip": 0.0}, "clip must be above 0 and finite; got 0.0"),
    ],
)
def test_options_are_checked(unchecked, options, message):
    with pytest.raises(OptionError, match=message):
        TrainConfig(**options)
