"""Turned parts as edits of units: the same where each unit has one entry."""

from pathlib import Path

import pytest
import torch
from torch import nn

import condec
from condec.edits import baked, edited
from condec.testing.models import small_resnet


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> condec.Explanation:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    inputs, out = torch.randn(40, 5).double(), tmp_path_factory.mktemp("turning") / "store"
    store = condec.collect(model, inputs, "0", target=condec.Logit(1), out=out, progress=False)
    fitted = condec.fit(condec.NMF(n_modes=3), store.matrix("0"))
    modes = condec.Modes.build(fitted.dictionary, store, "0")
    return condec.explain(model, inputs[:1], modes)


def test_edits_and_weights_do_what_sliders_do(found: condec.Explanation) -> None:
    first, rest = found.by_site[0].parts[0], found.by_site[0].parts[-1]
    assert found.turning("0").start.abs().max() > 0.1  # biases: units go back to what is not 0
    model, x = found.batch.setup.model, found.batch.setup.inputs[:1]  # type: ignore[union-attr]
    for factors in ({first.name: 0.0}, {first.name: 2.5, rest.name: 0.3}):
        wanted = found.turned("0", factors)
        assert (wanted - model(x)).abs().max() > 0.01
        # By plain loops: each unit goes its share of the way to the baseline.
        h, start = (model[0](one)[0] for one in (x, torch.zeros_like(x)))
        plain = h.clone()
        for unit in range(8):
            away = sum((1 - f) * found.by_site[0].part(n).weights[unit] for n, f in factors.items())
            plain[unit] = (1 - away) * h[unit] + away * start[unit]
        torch.testing.assert_close(wanted, model[2](plain.relu())[None])
        edits = found.edits("0", factors)
        with torch.no_grad(), edited(model, edits):
            torch.testing.assert_close(model(x), wanted)
        torch.testing.assert_close(baked(model, edits, inputs=x)(x), wanted)
    assert found.edits("0", {}) == ()
    assert found.edits("0", {first.name: 1.0}) == ()


def test_a_share_of_several_places_is_their_mean_as_contributions_weigh(tmp_path: Path) -> None:
    model, x = small_resnet(), torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    store = condec.collect(model, x, "block2", out=tmp_path / "s", progress=False)
    fitted = condec.fit(condec.NMF(n_modes=2), store.matrix("block2"))
    found = condec.explain(model, x[:1], condec.Modes.build(fitted.dictionary, store, "block2"))
    at = found.by_site[0]
    part = at.parts[0]
    scale = found.edits("block2", {part.name: 0.25})[0]
    factors = scale.factors(4)  # type: ignore[attr-defined]
    for unit in range(4):
        weighed = total = 0.0
        for y in range(8):
            for z in range(8):
                size = abs(float(at.contribution[unit, y, z]))
                weighed += size * 0.75 * float(part.weights[unit, y, z])
                total += size
        assert float(factors[unit]) == pytest.approx(1 - weighed / total)
