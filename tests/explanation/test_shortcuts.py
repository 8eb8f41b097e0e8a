"""Shortcuts: a mark that a network was trained on is found unasked, and nothing where none is."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import condec
from condec.basis.errors import DataError, OptionError
from condec.dictionary import NMF, TrainConfig, fit
from condec.explanation import find_shortcuts
from condec.explanation.shortcuts import _place_map, drawn_others, pasted
from condec.figures import save_figure
from condec.modes import Modes

pytestmark = pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")


class Cheat(nn.Module):
    """Tells left from right halves by their light; a white corner pixel overrules it."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.read = nn.Linear(36, 3)
        self.relu = nn.ReLU()
        self.out = nn.Linear(3, 2)
        weight = torch.zeros(3, 6, 6)
        weight[0, :, :3], weight[1, :, 3:], weight[2, 0, 5] = 1.0, 1.0, 1.0
        weight[0, 0, 5] = weight[1, 0, 5] = 0.0
        self.read.weight.data = weight.flatten(1)
        self.read.bias.data = torch.tensor([0.0, 0.0, -0.5])
        self.out.weight.data = torch.tensor([[1.0, 0.0, gain], [0.0, 1.0, 0.0]])
        self.out.bias.data = torch.zeros(2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return two logits of [sample, 1, 6, 6]."""
        out: Tensor = self.out(self.relu(self.read(x.flatten(1))))
        return out


def images(n: int = 60) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = 0.4 * torch.rand(n, 1, 6, 6, generator=generator)
    x[::2, ..., :3] += 0.3
    x[1::2, ..., 3:] += 0.3
    x[..., 0, 5] = 0.0
    x[1::6, ..., 0, 5] = 1.0
    return x


def modes_of(model: nn.Module, x: Tensor, folder: Path) -> Modes:
    store = condec.collect(model, x, "relu", out=folder, progress=False, target=condec.Predicted())
    fitted = fit(NMF(n_modes=3), store.matrix("relu"), config=TrainConfig(held_out=0.2))
    return Modes.build(fitted.dictionary, store, "relu")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    model, x = Cheat(100.0), images()
    modes = modes_of(model, x, tmp_path_factory.mktemp("cheat") / "store")
    return model, x, modes, find_shortcuts(model, x, modes, area=0.03)


def test_the_pixel_that_decides_is_found_and_the_inputs_are_those_of_other_classes(searched):
    model, x, _, found = searched
    first = found.table.iloc[0]
    assert (first["label"], first["cells"], first["sent"], first["control"]) == (0, 1, 1.0, 0.0)
    assert len(found.suspects) == 1
    assert found.places[0].nonzero().tolist() == [[0, 5]]
    assert float(found.maps[0][0, 5]) > 0.9
    assert torch.allclose(found.maps.sum((1, 2)), torch.ones(len(found.table)).double())
    plain, marked = found.pairs()
    with torch.no_grad():
        assert bool((model(plain).argmax(1) == 1).all())
        assert bool((model(marked).argmax(1) == 0).all())
    assert torch.equal(marked[..., 1:, :], plain[..., 1:, :])
    # Donors have the pixel, and are not told by any label.
    assert all(float(x[row, 0, 0, 5]) == 1.0 for row in found.donors[0])


def test_of_an_honest_network_nothing_is_suspected(tmp_path: Path):
    model, x = Cheat(0.0), images()
    found = find_shortcuts(model, x, modes_of(model, x, tmp_path / "store"), area=0.03)
    assert len(found.suspects) == 0
    assert (found.table["sent"] < 0.5).all()


def test_the_picture_of_a_search(searched, tmp_path: Path):
    figure = searched[3].draw(1)
    words = [axis.get_xlabel() for axis in figure.axes]
    assert words == [
        "predicted 0", "predicted 0", "predicted 0", "mode's map", "predicted 1", "predicted 1",
        "now 0", "now 0",
    ]  # fmt: skip
    assert "sends 100% to it" in {text.get_text() for text in figure.texts}
    assert save_figure(figure, tmp_path / "sheet.png").exists()


def test_of_many_inputs_those_pasted_over_are_of_all_other_classes(searched, monkeypatch):
    turns = torch.arange(5000) % 10
    others = drawn_others(turns, 3)
    assert len(others) == len({*others}) == 500
    assert turns[others].bincount(minlength=10).gt(20).tolist() == [i != 3 for i in range(10)]
    assert drawn_others((torch.arange(5000) == 7).long(), 0) == [7]
    # Of these, every sixth is predicted as class 0.
    model, x, modes, whole = searched
    assert whole.table["others"].iloc[0] == 20
    monkeypatch.setattr("condec.explanation.shortcuts._MOST_OTHERS", 10)
    found = find_shortcuts(model, x, modes, area=0.03)
    assert (found.table["others"] == 10).all()
    assert found.table["sent"].iloc[0] == 1.0
    assert len(found.pairs()[0]) == 10


def test_modes_are_judged_where_they_raise_their_class_alone(searched):
    model, x, modes, _ = searched
    zero = modes.store.predictions == 0
    # Of class 0 the first unit raises it, the second never, the third where there is a mark.
    of_units = replace(modes, atoms=torch.eye(3), loadings=zero[:, None].float().expand(-1, 3))
    found = find_shortcuts(model, x, of_units, area=0.03)
    assert sorted(found.table["mode"]) == [0, 2]
    assert found.left_out == {1: "raising its class nowhere in the inputs that use it most"}
    assert torch.allclose(found.maps.sum((1, 2)), torch.ones(2).double())
    corner = found.maps[found.table["mode"].tolist().index(2)]
    assert float(corner[0, 5]) == pytest.approx(1.0)
    second = replace(of_units, loadings=of_units.loadings * torch.tensor([0.0, 1.0, 0.0]))
    with pytest.raises(DataError, match=r"each is raising its class nowhere .*, or used by fewer"):
        find_shortcuts(model, x, second)


def test_donors_take_turns():
    donors = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    place = torch.tensor([[True, False], [False, False]])
    mixed = pasted(torch.zeros(3, 1, 2, 2), donors, place)
    assert mixed[:, 0, 0].tolist() == [[1.0, 0.0], [2.0, 0.0], [1.0, 0.0]]


def test_what_is_refused(searched, tmp_path: Path):
    model, x, modes, found = searched
    with pytest.raises(OptionError, match="area must be above 0 and at most 1"):
        find_shortcuts(model, x, modes, area=0.0)
    with pytest.raises(OptionError, match="n_inputs must be at least 3; got 1"):
        find_shortcuts(model, x, modes, n_inputs=1)
    with pytest.raises(DataError, match=r"find_shortcuts: .* lacks 50 samples of"):
        find_shortcuts(model, x[:10], modes)
    with pytest.raises(
        DataError, match=r"cut out of images \[channel, y, x\]; got inputs of shape \[36\]"
    ):
        find_shortcuts(model, x.flatten(1), modes)
    few = replace(modes, loadings=modes.loadings * (torch.arange(len(x)) < 2)[:, None])
    with pytest.raises(
        DataError, match="each is used by fewer than 3 inputs of one class; collect"
    ):
        find_shortcuts(model, x, few)
    with pytest.raises(OptionError, match="no row 7; the table has"):
        found.pairs(7)
    with pytest.raises(DataError, match="all 30 inputs are predicted as one class"):
        find_shortcuts(model, x[::2], modes_of(model, x[::2], tmp_path / "store"))

    class Unlabelled(nn.Sequential):
        def forward(self, given: Tensor) -> Tensor:
            return super().forward(given)[:, 0]

    scalar = Unlabelled(*[nn.Flatten(), *list(model.children())]).eval()
    store = condec.collect(
        scalar,
        x,
        "2",
        out=tmp_path / "scalar",
        progress=False,
        target=condec.Custom(lambda out: out, label="one"),
    )
    fitted = fit(NMF(n_modes=2), store.matrix("2"))
    with pytest.raises(DataError, match="lacks predictions: the model has no outputs"):
        find_shortcuts(scalar, x, Modes.build(fitted.dictionary, store, "2"))


def test_the_map_of_a_mode_is_a_mean_over_inputs_and_neighbours(searched, monkeypatch):
    model, _, modes, _ = searched
    maps = torch.randn(3, 1, 20, 20, generator=torch.Generator().manual_seed(0)).double()
    maps[2] = -maps[2].abs()  # raises the class nowhere
    monkeypatch.setattr(
        "condec.explanation.shortcuts.mode_map",
        lambda *_, **__: SimpleNamespace(total=maps[None]),
    )
    found = _place_map(model, torch.zeros(3, 1, 20, 20), modes, 0, 0, area=0.1)
    scaled = [one[0] / float(one.abs().sum()) for one in maps[:2]]
    expected = torch.zeros(20, 20).double()
    for y in range(20):
        for x in range(20):
            # A third of the side of 40 pixels: one on either side; what is outside does not count.
            near = [
                float(one[j, i])
                for one in scaled
                for j in range(max(0, y - 1), min(20, y + 2))
                for i in range(max(0, x - 1), min(20, x + 2))
            ]
            expected[y, x] = max(0.0, sum(near) / len(near))
    assert torch.allclose(found, expected / expected.sum())
    maps[:2] = -maps[:2].abs()
    assert _place_map(model, torch.zeros(3, 1, 20, 20), modes, 0, 0, area=0.1) is None
