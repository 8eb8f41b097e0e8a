"""A network whose answer to every edit is known by hand, its store, and modes of its labels."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from condec.attribution.targets import Label
from condec.modes.modes import Modes
from condec.network.sites import Site
from condec.store.collection import collect

N_LABELS, N_UNITS = 3, 6


class Readout(nn.Module):
    """Label k is the sum of units 2 k and 2 k + 1; unit 2 k weighs more."""

    def __init__(self, names=("hidden",)):
        super().__init__()
        self.names = names
        for name in names:
            setattr(self, name, nn.Identity())
        self.weight = torch.zeros(N_LABELS, N_UNITS)
        for label in range(N_LABELS):
            self.weight[label, 2 * label : 2 * label + 2] = torch.tensor([1.0, 0.5])
        self.eval()

    def forward(self, x):
        for name in self.names:
            x = getattr(self, name)(x)
        return x @ self.weight.T


def make_modes(store, **changes):
    """One mode a label: its two units, loaded by its samples; every second block held out."""
    labels = store.labels
    atoms = torch.zeros(N_LABELS, N_UNITS)
    for label in range(N_LABELS):
        atoms[label, 2 * label : 2 * label + 2] = torch.tensor([2.0, 1.0])
    fields = {
        "atoms": atoms,
        "loadings": (labels[:, None] == torch.arange(N_LABELS)).float(),
        "ids": torch.tensor([10, 11, 12]),
        "held_out": torch.arange(len(store)) // N_LABELS % 2 == 1,
        "store": store,
        "site": Site("hidden"),
        "sign": "positive",
        "quantity": "contribution",
        "n_modes": 20,
    }
    return Modes(**(fields | changes))


@dataclass(frozen=True, eq=False)
class Chain:
    """Model, data, and modes of a finished store."""

    model: Readout
    data: tuple[Tensor, Tensor]
    modes: Modes
    make_modes: Callable[..., Modes]
    make_model: Callable[..., Readout]

    def __iter__(self):
        return iter((self.model, self.data, self.modes))

    def data_with(self, modes):
        """Model and data with other modes."""
        return self.model, self.data, modes

    @property
    def held_out(self):
        """Held-out inputs and labels."""
        return tuple(part[self.modes.held_out] for part in self.data)


@pytest.fixture(scope="session")
def data():
    """Inputs whose label's two units are high; labels take turns."""
    labels = torch.arange(30) % N_LABELS
    x = 0.2 * torch.rand(30, N_UNITS, generator=torch.Generator().manual_seed(0))
    for unit in (0, 1):
        x[torch.arange(30), 2 * labels + unit] += 1.0
    return x, labels


@pytest.fixture(scope="session")
def two_site_store(tmp_path_factory, data):
    """Of a network with the same units at two sites."""
    path = tmp_path_factory.mktemp("effects") / "s"
    model = Readout(("hidden", "again"))
    return collect(model, data, "hidden,again", target=Label(), out=path, progress=False)


@pytest.fixture
def chain(two_site_store, data):
    return Chain(
        Readout(("hidden", "again")), data, make_modes(two_site_store), make_modes, Readout
    )
