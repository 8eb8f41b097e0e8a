"""Shares of receptive fields: they add up, they are the circuit's own, and what is refused."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from condec import IntegratedGradients, Sum, collect, fit
from condec.basis.errors import DataError, OptionError
from condec.data import as_inputs
from condec.dictionary import NMF
from condec.modes import Modes
from condec.retina import PartWeights, field_sources, part_fields, receptive_fields
from condec.retina.sources import FieldSources, fields_of_flip
from condec.testing.retina import PlantedRetina

HISTORY, SIZE, N_UNITS = 3, 5, 4


class Network(nn.Module):
    """A site of 4 units, and a way past it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(HISTORY, N_UNITS, 3)
        self.read = nn.Linear(N_UNITS * (SIZE - 2) ** 2, 3)
        self.past = nn.Linear(HISTORY * SIZE**2, 3)

    def forward(self, x: Tensor) -> Tensor:
        shown = self.read(self.conv(x).tanh().flatten(1)) + self.past(x.flatten(1)).tanh()
        return nn.functional.softplus(shown)


def case(n: int = 9, n_parts: int = 3, seed: int = 0):
    gen = torch.Generator().manual_seed(seed)
    model = Network().double().eval()
    clips = as_inputs(torch.randn(n, HISTORY, SIZE, SIZE, generator=gen, dtype=torch.float64))
    fields = receptive_fields(model, clips, crop=None).aligned()
    shares = torch.rand(n, n_parts, N_UNITS, generator=gen, dtype=torch.float64)
    names = tuple(f"part {p}" for p in range(n_parts))
    return model, clips, fields, PartWeights(names, shares / shares.sum(1, keepdim=True))


@settings(max_examples=8, deadline=None)
@given(n_parts=st.integers(1, 7), seed=st.integers(0, 5))
def test_shares_and_amounts_add_up(n_parts: int, seed: int) -> None:
    """The theorem: over parts shares are 1, amounts the field's length with its sign."""
    model, clips, fields, weights = case(n_parts=n_parts, seed=seed)
    found = field_sources(model, clips, "conv", fields, weights, batch_size=4)
    torch.testing.assert_close(found.share.sum(1), torch.ones(3).double())
    length = receptive_length(model, clips)
    torch.testing.assert_close(found.amount.sum(2), length * fields.polarity.double(), atol=1e-6,
                               rtol=1e-6)  # fmt: skip


def receptive_length(model: nn.Module, clips) -> Tensor:
    x = clips.batch(range(len(clips))).requires_grad_()
    rates = model(x)
    grads = [torch.autograd.grad(rates[:, c].sum(), x, retain_graph=True)[0] for c in range(3)]
    return torch.stack([one.flatten(1).norm(dim=1) for one in grads], 1)


def test_by_unit_and_by_part_are_the_same() -> None:
    """Few parts go back one by one, many as mixtures of the fields of units."""
    model, clips, fields, weights = case(n_parts=3)
    few = field_sources(model, clips, "conv", fields, weights)
    halves = torch.cat((weights.values / 2, weights.values / 2), 1)
    many = field_sources(model, clips, "conv", fields, PartWeights(2 * weights.names, halves))
    torch.testing.assert_close(many.share[:, :3] + many.share[:, 3:6], few.share[:, :3])
    torch.testing.assert_close(many.amount[..., :3] * 2, few.amount[..., :3])
    torch.testing.assert_close(many.share[:, -1], few.share[:, -1])


def test_part_fields_sum_to_the_gradient() -> None:
    model, clips, _, weights = case(5)
    parts = part_fields(model, clips, "conv", weights, cell=1, rows=range(5))
    x = clips.batch(range(5)).requires_grad_()
    (whole,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    assert parts.shape == (5, 4, HISTORY, SIZE, SIZE)
    torch.testing.assert_close(parts.sum(1), whole)


def test_a_cell_whose_field_never_changes_has_no_shares() -> None:
    model = nn.Sequential(nn.Conv2d(HISTORY, N_UNITS, SIZE), nn.Flatten(), nn.Linear(N_UNITS, 2))
    with torch.no_grad():
        model[2].weight[1] = 0
    _, clips, _, weights = case()
    model.double().eval()
    fields = receptive_fields(model, clips, crop=None)
    found = field_sources(model, clips, "0", fields, weights)
    assert bool(found.share[1].isnan().all())
    assert not found.amount[:, 1].any()
    assert found.flips().query("cell == 1").empty


@pytest.fixture(scope="module")
def planted() -> PlantedRetina:
    return PlantedRetina.standard(0, n_frames=400, dwell=15.0)


def test_pathways_of_the_circuit(planted: PlantedRetina) -> None:
    """At the second layer groups of units are the pathways: no other one has a share."""
    circuit, clips = planted.circuit, planted.windows
    fields = receptive_fields(circuit, clips, rows=range(0, len(clips), 6)).aligned()
    groups = {f"pathway {p}": units for p, units in enumerate(circuit.wiring.interneurons)}
    weights = PartWeights.of_groups(groups, 8, len(fields))
    found = field_sources(circuit, clips, "relu2", fields, weights)
    assert found.names == (*groups, "left over", "past the site")
    for share, pathways in zip(found.share, circuit.wiring.cells, strict=True):
        others = [p for p in range(6) if p not in pathways]
        torch.testing.assert_close(share[others], torch.zeros(len(others)).double(), atol=1e-5,
                                   rtol=0)  # fmt: skip
    flips = found.flips()
    assert len(flips) > 20
    assert set(flips["to"]) == {"ON", "OFF"}
    for row in flips.to_dict("records"):
        assert int(row["part"].split()[1]) in circuit.wiring.cells[row["cell"]]
        assert row["share"] >= 0.5  # of two
        assert (row["change"] > 0) == (row["to"] == "ON")
    flip = fields_of_flip(circuit, clips, "relu2", fields, found, weights)
    assert flip.polarity[0, 0] == -flip.polarity[4, 0]


def test_groups_that_overlap_or_are_of_no_unit_are_refused() -> None:
    weights = PartWeights.of_groups({"a": [0, 2], "b": [3]}, 4, 2)
    assert weights.values[1].tolist() == [[1, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]]
    for groups, words in (
        ({"a": [0, 1], "b": [1]}, "unit 1 is named twice, in a and in b"),
        ({"a": [1, 1]}, "unit 1 is named twice, in a and in a"),
        ({"a": [-1]}, "of_groups: a: no unit -1; expected 0 to 3"),
        ({"a": [4]}, "a: no unit 4"),
    ):
        with pytest.raises(OptionError, match=words):
            PartWeights.of_groups(groups, 4, 2)


def test_responsibilities_of_modes(planted: PlantedRetina, tmp_path) -> None:
    store = collect(
        planted.circuit, planted.windows, "relu2", out=tmp_path / "s", target=Sum(),
        method=IntegratedGradients(steps=2), progress=False,
    )  # fmt: skip
    found = fit(NMF(5), store.matrix("relu2", sign="positive")).dictionary
    modes = Modes.build(found, store, "relu2", sign="positive")
    rows = torch.arange(0, 300, 7)
    every = PartWeights.of_modes(modes, rows)
    assert every.names[-1] == "left over"
    torch.testing.assert_close(every.values.sum(1), torch.ones(len(rows), 8).double())
    said = modes.loadings[rows].double()[:, :, None] * modes.atoms.double()
    answered = said.sum(1) > 0
    some = store.matrix("relu2", sign="positive")[rows] > 0
    expected = (said / said.sum(1, keepdim=True)).nan_to_num(0) * some[:, None]
    torch.testing.assert_close(every.values[:, :-1], expected)
    assert bool((every.values[:, -1][answered & some] < 1e-9).all())
    few = PartWeights.of_modes(modes, rows, n_modes=2)
    assert few.names[-2:] == ("other modes", "left over")
    assert few.values.shape == (len(rows), 4, 8)
    torch.testing.assert_close(few.values.sum(1), torch.ones(len(rows), 8).double())
    kept = [every.names.index(name) for name in few.names[:2]]
    torch.testing.assert_close(few.values[:, :2], every.values[:, kept])
    with pytest.raises(DataError, match="of_modes: relu2: expected modes of whole samples; got th"):
        PartWeights.of_modes(replace(modes, rows="positions"), rows)


@pytest.mark.usefixtures("unchecked")
def test_what_is_refused() -> None:
    model, clips, fields, weights = case()
    with pytest.raises(OptionError, match="batch_size must be at least 1"):
        field_sources(model, clips, "conv", fields, weights, batch_size=0)
    fewer = PartWeights(weights.names, weights.values[:4])
    with pytest.raises(DataError, match="weights of 4 frames, fields of 9; give those of the same"):
        field_sources(model, clips, "conv", fields, fewer)
    other = PartWeights(weights.names, weights.values[:, :, :3])
    with pytest.raises(DataError, match="conv has 4 units; the weights are of 3"):
        field_sources(model, clips, "conv", fields, other)
    with pytest.raises(DataError, match="needs clips of shape"):
        part_fields(model, as_inputs(torch.randn(2, 4)), "conv", weights, cell=0, rows=[0])
    steady = FieldSources(
        weights.names, torch.ones(1, 3), torch.ones(9, 1, 3), torch.arange(9), torch.zeros(1).long()
    )
    with pytest.raises(DataError, match="no cell's field changes its sign"):
        fields_of_flip(model, clips, "conv", fields, steady, weights)
