"""Parts of an explanation, entry by entry."""

import itertools

import pytest
import torch

import condec
from condec.testing.models import small_resnet


@pytest.mark.filterwarnings("ignore::condec.dictionary.fitting.train.DeadModesWarning")
@pytest.mark.parametrize(
    ("quantity", "sign"),
    [("contribution", sign) for sign in ("positive", "negative", "sum", "concat")]
    + [("activation", "positive"), ("activation", "sum")],
)
def test_every_entry_is_divided_by_responsibility(tmp_path, quantity, sign):
    """r_mu = z_m D_mu / sum z D, of what has the sign of the row; the offset takes its share."""
    model = small_resnet().double()
    images = torch.rand(20, 1, 5, 5, generator=torch.Generator().manual_seed(1)).double()
    target = condec.Logit(1)
    store = condec.collect(
        model, images, "block1", out=tmp_path / "s", target=target, progress=False
    )
    fitted = condec.fit(condec.PCA(n_modes=3), store.matrix("block1", quantity, sign))
    dictionary = fitted.dictionary
    modes = condec.Modes.build(dictionary, store, "block1", sign, quantity=quantity)
    at = condec.explain(model, images[:1], modes).by_site[0]

    batch = condec.contribute(model, images[:1], "block1", target=target)["block1"]
    contribution, decomposed = batch.contribution[0], getattr(batch, quantity)[0]
    n_units = len(contribution)
    entries = list(itertools.product(*map(range, contribution.shape)))
    up, down = torch.zeros(n_units).double(), torch.zeros(n_units).double()
    for entry in entries:
        value = decomposed[entry]
        (up if value > 0 else down)[entry[0]] += value
    rows = {"positive": up, "negative": down, "sum": up + down, "concat": torch.cat([up, down])}
    row = rows[sign]
    z = dictionary.encode(row[None].float())[0].double()
    atoms, offset = dictionary.atoms.double(), dictionary.offset.double()

    expected = torch.zeros(3, *contribution.shape).double()
    described = {"positive": (1,), "negative": (-1,), "concat": (1, -1)}.get(sign, (1, -1, 0))
    for entry in entries:
        value = float(decomposed[entry])
        if (value > 0) - (value < 0) not in described:
            continue
        column = entry[0] + n_units * (sign == "concat" and value < 0)
        said = [float(z[m] * atoms[m, column]) for m in range(3)] + [float(offset[column])]
        with_row = [max(s if row[column] > 0 else -s, 0.0) for s in said]
        for m in range(3 if row[column] and sum(with_row) else 0):
            expected[m][entry] = with_row[m] / sum(with_row) * contribution[entry]
    for part in at.modes:
        own = expected[part.id]
        torch.testing.assert_close(part.weights * at.contribution, own, rtol=0, atol=1e-7)
        torch.testing.assert_close(part.places, own.sum(0), rtol=0, atol=1e-7)
        assert part.adds == pytest.approx(float(own.clamp(min=0).sum()), abs=1e-7)
        assert part.takes == pytest.approx(float(own.clamp(max=0).sum()), abs=1e-7)
    left = contribution - expected.sum(0)
    assert at.part("left over").net == pytest.approx(float(left.sum()), abs=1e-6)
