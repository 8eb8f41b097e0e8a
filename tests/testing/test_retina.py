"""Scores say 1 of what is planted and chance of what is not; and the circuit's modes are found."""

import dataclasses

import pytest
import torch
from retina_scores import (
    FoundModes,
    best_mode_auroc,
    even_rows,
    folded,
    gate_auroc,
    sign_attribution,
)
from torch import Tensor

from condec import (
    IntegratedGradients,
    Sum,
    Surprisal,
    Target,
    ThresholdSAE,
    TrainConfig,
    collect,
    fit,
)
from condec.basis.errors import DataError, OptionError
from condec.dictionary import Learner, TopKSAE
from condec.retina import ReceptiveFields, receptive_fields
from condec.retina.models.circuit import HISTORY
from condec.testing.retina import PlantedRetina


def small() -> PlantedRetina:
    return PlantedRetina.standard(n_frames=1000, dwell=15.0)


@pytest.fixture(scope="module")
def planted() -> PlantedRetina:
    return small()


@pytest.fixture(scope="module")
def fields(planted: PlantedRetina) -> ReceptiveFields:
    return held_out_fields(planted)


def held_out_fields(planted: PlantedRetina) -> ReceptiveFields:
    return receptive_fields(
        planted.circuit, planted.windows, rows=planted.held_out, crop=None
    ).aligned()


def perfect(planted: PlantedRetina, site: str = "relu1") -> FoundModes:
    """Modes as they were planted, on while the gate is open."""
    atoms = planted.atoms(site)
    return FoundModes.by_atoms(atoms, planted.gates.float(), atoms, planted.train)


def test_what_is_planted(planted):
    assert torch.equal(small().recording.movie, planted.recording.movie)
    assert len(PlantedRetina.standard(1, n_frames=100).recording) == 100
    # No clip of the one and of the other share a frame.
    assert int(planted.train[-1]) + HISTORY < int(planted.held_out[0])
    assert int(planted.held_out[-1]) == len(planted.windows) - 1 == len(planted.gates) - 1
    for site in ("conv1", "relu1", "conv2", "relu2"):
        atoms = planted.atoms(site)
        assert atoms.sum(1).tolist() == [2.0] * 4
        assert atoms.sum(0).tolist() == [1.0] * 8
    pair = list(planted.circuit.wiring.interneurons[2])
    assert planted.atoms("conv2")[2, pair].tolist() == [1.0, 1.0]
    assert planted.atoms("relu1")[0, list(planted.circuit.wiring.subunits[0])].all()
    for site in ("conv3", "rate", "norm1", ""):
        with pytest.raises(OptionError, match="expected site conv1, relu1, conv2 or relu2; got"):
            planted.atoms(site)


def test_folded_adds_absolute_halves():
    atoms = torch.tensor([[1.0, 0.0, -3.0, -2.0], [0.0, 0.5, 0.0, 0.0]])
    assert folded(atoms, 2).tolist() == [[4.0, 2.0], [0.0, 0.5]]
    assert folded(atoms, 4).tolist() == atoms.abs().tolist()
    with pytest.raises(DataError, match="of 3 entries, or 6 for the sign concat; got 4"):
        folded(atoms, 3)


def test_planted_modes_get_full_marks(planted, fields):
    found = perfect(planted)
    torch.testing.assert_close(found.cosine, torch.ones(4))
    assert found.pathway.tolist() == [0, 1, 2, 3]
    held_out, gates = planted.held_out, planted.gates
    assert gate_auroc(found, gates, held_out).tolist() == [1.0] * 4
    assert best_mode_auroc(found, gates, planted.train, held_out).tolist() == [1.0] * 4
    signs = sign_attribution(found, fields, planted)
    assert signs.right_one_gate == 1.0
    assert 0.75 < signs.right <= 1.0  # where both gates are open, gates do not tell
    assert signs.chance < 0.6
    assert signs.n_fields > 300


def test_signs_are_wrong_with_on_and_off_exchanged(planted, fields):
    found = perfect(planted)
    exchanged = dataclasses.replace(found, pathway=torch.tensor([1, 0, 3, 2]))
    assert sign_attribution(exchanged, fields, planted).right_one_gate < 0.5
    silent = dataclasses.replace(found, loadings=torch.zeros_like(found.loadings))
    assert sign_attribution(silent, fields, planted).right == 0.0


def test_halves_copies_and_parts_of_a_pathway_belong_to_it(planted):
    whole = planted.atoms("relu1")
    halves = torch.cat((whole, torch.zeros(4, 8))), torch.cat((torch.zeros(4, 8), -2 * whole))
    atoms = torch.cat(halves, 1)  # a positive and a negative mode for each
    gates = planted.gates.float()
    # Either sees half of the open samples: only both together tell the gate.
    even = (torch.arange(len(gates)) % 2 == 0).float()[:, None]
    found = FoundModes.by_atoms(
        atoms, torch.cat((gates * even, gates * (1 - even)), 1), whole, planted.train
    )
    torch.testing.assert_close(found.cosine, torch.ones(4))
    assert found.pathway.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert gate_auroc(found, planted.gates, planted.held_out).tolist() == [1.0] * 4
    alone = best_mode_auroc(found, planted.gates, planted.train, planted.held_out)
    assert bool((alone < 0.85).all())
    expected = gates * (even * 2**0.5 + (1 - even) * 8**0.5)
    torch.testing.assert_close(found.pathway_loadings, expected)


def test_modes_that_are_no_pathway_get_chance(planted, fields):
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(len(planted.gates), 4, generator=generator)
    atoms = planted.atoms("relu2")
    found = FoundModes.by_atoms(atoms, noise, atoms, planted.train)
    assert bool((gate_auroc(found, planted.gates, planted.held_out) - 0.5 < 0.15).all())
    signs = sign_attribution(found, fields, planted)
    assert abs(signs.right - 0.5) < 0.1
    assert abs(signs.right - signs.chance) < 0.1
    across = atoms[:, torch.randperm(8, generator=torch.Generator().manual_seed(1))]
    assert float(FoundModes.by_atoms(across, noise, atoms, planted.train).cosine.mean()) < 0.8


def test_by_gates_needs_no_planted_atoms(planted):
    gates = planted.gates.float()[:, [2, 0, 3, 1]]
    rare = torch.zeros(len(gates), 1)
    rare[planted.train[0]] = 1.0
    found = FoundModes.by_gates(
        torch.ones(5, 3), torch.cat((gates, rare), 1), planted.gates, planted.train
    )
    assert found.pathway.tolist() == [2, 0, 3, 1]
    assert bool(found.cosine.isnan().all())
    assert gate_auroc(found, planted.gates, planted.held_out).tolist() == [1.0] * 4


def test_what_cannot_be_scored(planted, fields):
    atoms, nothing = planted.atoms("relu1"), torch.zeros(len(planted.gates), 4)
    with pytest.raises(DataError, match="no mode is above 0 in one of a hundred training samples"):
        FoundModes.by_atoms(atoms, nothing, atoms, planted.train)
    with pytest.raises(DataError, match="a gate never changes in these samples"):
        gate_auroc(perfect(planted), torch.zeros_like(planted.gates), planted.held_out)
    pure = [len(pathways) for pathways in planted.circuit.wiring.cells].index(1)
    one = receptive_fields(
        planted.circuit, planted.windows, cells=[pure], rows=planted.held_out[:4], crop=None
    )
    with pytest.raises(DataError, match="no cell of these fields draws on two pathways"):
        sign_attribution(perfect(planted), one, planted)


def analysed(
    planted: PlantedRetina, fields: ReceptiveFields, target: Target, learner: Learner,
    folder: str, **fitting: int,
) -> list[tuple[Tensor, Tensor, float]]:  # fmt: skip
    """Of contributions and of activations of the first layer: cosine, gate AUROC, signs right."""
    store = collect(
        planted.circuit, planted.windows, "relu1", out=folder, target=target, batch_size=128,
        method=IntegratedGradients(steps=20), progress=False,
    )  # fmt: skip
    figures = []
    for quantity in ("contribution", "activation"):
        matrix = store.matrix("relu1", quantity=quantity, sign="concat")
        rows = even_rows(matrix, planted.train)
        report = fit(learner, rows[planted.train], config=TrainConfig(**fitting))
        atoms, loadings = report.dictionary.atoms, report.dictionary.encode(rows)
        found = FoundModes.by_atoms(atoms, loadings, planted.atoms("relu1"), planted.train)
        signs = sign_attribution(found, fields, planted)
        areas = gate_auroc(found, planted.gates, planted.held_out)
        figures.append((found.cosine, areas, signs.right_one_gate))
    return figures


def check(figures: list[tuple[Tensor, Tensor, float]]) -> None:
    (cosine, areas, right), (_, areas_of_activations, right_of_activations) = figures
    assert float(cosine.mean()) > 0.9
    assert float(areas.mean()) > 0.9
    assert right > 0.9
    assert float(areas_of_activations.mean()) < 0.65  # the first layer knows of no gate
    assert right_of_activations < 0.65


def test_pathways_are_found_from_contributions_of_the_first_layer(planted, fields, tmp_path):
    target = Surprisal.fit(planted.recording.responses(HISTORY)[planted.train])
    learner, store = TopKSAE(16, k=4), str(tmp_path / "store")
    check(analysed(planted, fields, target, learner, store, steps=600))


# Four pathways have no use for the paper's ten modes an entry.
@pytest.mark.filterwarnings("ignore::condec.dictionary.fitting.train.DeadModesWarning")
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_pathways_of_the_standard_circuit(seed, tmp_path):
    planted, learner = PlantedRetina.standard(seed), ThresholdSAE(160)
    fields, store = held_out_fields(planted), str(tmp_path / "store")
    check(analysed(planted, fields, Sum(), learner, store, seed=seed))


def test_even_rows_keep_direction_and_faint_rows_faint():
    matrix = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [60.0, 80.0]])
    rows = even_rows(matrix, torch.tensor([0, 1]))
    unit = 0.1 * ((25 + 0.25) / 2) ** 0.5
    lengths = torch.tensor([5.0, 0.5, 0.0, 100.0])
    torch.testing.assert_close(rows.norm(dim=1), lengths / (lengths + unit))
    torch.testing.assert_close(rows[0] / rows[0].norm(), torch.tensor([0.6, 0.8]))
