"""The known circuit does what its wiring says, and so does its recording."""

import itertools

import pytest
import torch
from torch import Tensor

from condec.basis.errors import OptionError
from condec.models import load_model
from condec.retina import separate
from condec.retina.models.circuit import HISTORY, POLARITY, SIZE, RetinaCircuit, standard_circuit
from condec.retina.movies.gated import circuit_recording, gated_movie


def clip_with(circuit: RetinaCircuit, *pathways: int, seed: int = 0) -> Tensor:
    """Noise in the centre; the quadrants that open these pathways bright, the others dark."""
    noise = torch.randn(1, HISTORY, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    outside = torch.ones(SIZE, SIZE, dtype=torch.bool)
    outside[4:-4, 4:-4] = False
    light = -torch.ones(SIZE, SIZE)
    for pathway in pathways:
        top, left = divmod(circuit.wiring.quadrants[pathway], 2)
        light[12 * top : 12 * top + 12, 12 * left : 12 * left + 12] = 1
    return torch.where(outside, light, noise)


def interneurons(circuit: RetinaCircuit, clip: Tensor) -> Tensor:
    kept = []
    hook = circuit.relu2.register_forward_hook(lambda module, args, out: kept.append(out))
    with torch.no_grad():
        circuit(clip)
    hook.remove()
    return kept[0].sum((0, 2, 3))


@pytest.mark.parametrize("seed", [0, 4])
def test_light_in_its_quadrant_opens_a_pathway_and_no_other(seed):
    circuit = standard_circuit(seed)
    grey = torch.zeros(1, HISTORY, SIZE, SIZE)
    assert bool((circuit.gates(grey) < 0.01).all())
    assert bool((circuit(grey) < 0.5).all())
    for pathway in range(4):
        clip = clip_with(circuit, pathway)
        opened = circuit.gates(clip)[0] > 0.9
        assert opened.nonzero().flatten().tolist() == [pathway]
        active = (interneurons(circuit, clip) > 0).nonzero().flatten().tolist()
        assert sorted(active) == sorted(circuit.wiring.interneurons[pathway])


def test_each_pathway_reads_its_own_subunits_alone():
    circuit = standard_circuit(1)
    weight = circuit.conv2.weight.detach().abs().sum((2, 3))
    for subunits, targets in zip(circuit.wiring.subunits, circuit.wiring.interneurons, strict=True):
        for target in targets:
            assert weight[target].nonzero().flatten().tolist() == sorted(subunits)
    lengths = circuit.conv1.weight.detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(8))


def test_cells_draw_on_the_pathways_that_the_wiring_names():
    circuit = standard_circuit(2)
    pairs = list(itertools.product((0, 2), (1, 3)))
    assert sorted(circuit.wiring.cells) == sorted([(0,), (1,), (2,), (3,), *pairs, *pairs])
    weight = circuit.readout.weight.detach().view(12, 8, -1)
    for cell, pathways in enumerate(circuit.wiring.cells):
        for pathway, channels in enumerate(circuit.wiring.interneurons):
            first, second = weight[cell, list(channels)]
            assert bool(first.any()) == (pathway in pathways)
            torch.testing.assert_close(first, second)


@pytest.mark.parametrize("seed", [0, 3])
def test_the_open_gate_decides_the_sign_of_the_receptive_field(seed):
    circuit = standard_circuit(seed)
    for cell, pathways in enumerate(circuit.wiring.cells):
        for pathway in pathways:
            clip = clip_with(circuit, pathway, seed=seed).requires_grad_()
            (gradient,) = torch.autograd.grad(circuit(clip)[0, cell], clip)
            picture = separate(gradient[0]).spatial
            assert picture.flatten()[picture.abs().argmax()].sign() == POLARITY[pathway]


def test_same_seed_same_circuit():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, second, other = standard_circuit(5), standard_circuit(5), standard_circuit(6)
    assert torch.equal(torch.rand(3), expected)
    assert first.wiring == second.wiring != other.wiring
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


@pytest.mark.parametrize(("spec", "seed"), [("circuit", 0), ("circuit:7", 7)])
def test_by_its_name(spec, seed):
    loaded = load_model(spec)
    assert (loaded.name, loaded.input_shape) == (spec, (HISTORY, SIZE, SIZE))
    assert not loaded.model.training
    known = standard_circuit(seed).state_dict()
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, known[name])
    with pytest.raises(OptionError, match=r"'circuit' brings its own weights; got 'x\.pt'"):
        load_model(spec, "x.pt")
    with pytest.raises(OptionError, match="expected 'circuit' or 'circuit:SEED'"):
        load_model("circuit:x")


def test_gated_movie_is_noise_within_and_light_around():
    movie = gated_movie(4000, seed=3, dwell=10.0)
    assert movie.shape == (4000, SIZE, SIZE)
    corners = movie[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert torch.equal(corners, movie[:, [3, 3, -4, -4], [11, -12, 11, -12]])
    assert set(corners.unique().tolist()) == {-1.0, 1.0}
    centre = movie[:, 4:-4, 4:-4]
    assert abs(float(centre.mean())) < 0.01
    assert abs(float(centre.std()) - 1) < 0.01
    bright = (corners > 0).float()
    assert abs(float(bright.mean()) - 0.4) < 0.05
    # A change needs a draw (0.1 a frame) that falls on the other side (2 * 0.4 * 0.6).
    changes = float((bright[1:] != bright[:-1]).float().mean())
    assert abs(changes - 0.048) < 0.01
    assert torch.equal(movie, gated_movie(4000, seed=3, dwell=10.0))
    assert not torch.equal(movie, gated_movie(4000, seed=4, dwell=10.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_frames": 0}, "n_frames must be at least 1; got 0"),
        ({"n_frames": 9, "dwell": 0.5}, "dwell must be at least 1 and finite; got 0.5"),
    ],
)
def test_movies_that_cannot_be(options, message):
    with pytest.raises(OptionError, match=message):
        gated_movie(**options)


def test_recording_holds_rates_and_gates_of_its_own_frames():
    circuit = standard_circuit(1)
    recording = circuit_recording(circuit, 300, seed=2)
    clips = recording.windows(HISTORY).batch(range(300 - HISTORY))
    with torch.no_grad():
        torch.testing.assert_close(recording.responses(HISTORY), circuit(clips))
        gates = circuit.gates(clips) > 0.5
    assert list(recording.events) == [
        "gate ON small", "gate OFF small", "gate ON wide", "gate OFF wide",
    ]  # fmt: skip
    shown = torch.stack(list(recording.events.values()), 1)
    assert torch.equal(shown[HISTORY:] > 0, gates)
    assert not bool(shown[:HISTORY].any())
    assert not bool(recording.rates[:HISTORY].any())
    assert 0 < float(gates.float().mean()) < 1
    with pytest.raises(OptionError, match="n_frames must be more than the 16 of a clip; got 16"):
        circuit_recording(circuit, 16)
