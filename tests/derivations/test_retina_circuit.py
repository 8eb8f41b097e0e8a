"""The rates of the known circuit, place by place in float64."""

import math

import numpy as np
import torch

from condec.retina.models.circuit import HISTORY, SIZE, RetinaCircuit, standard_circuit


def slow_rates(circuit: RetinaCircuit, clip: np.ndarray) -> list[float]:
    """By the words of its description: subunits, amacrine cells, shunt, ganglion cells."""
    weights = {name: p.detach().double().numpy() for name, p in circuit.named_parameters()}
    centre = clip[:, 4:20, 4:20]
    subunits = np.zeros((8, 10, 10))
    for channel in range(8):
        for y in range(10):
            for x in range(10):
                seen = centre[:, y : y + 7, x : x + 7] * weights["conv1.weight"][channel]
                subunits[channel, y, x] = max(0.0, seen.sum() + weights["conv1.bias"][channel])
    interneurons = np.zeros((8, 8, 8))
    for pathway, channels in enumerate(circuit.wiring.interneurons):
        gate = slow_gate(circuit, pathway, clip)
        for channel in channels:
            for y in range(8):
                for x in range(8):
                    drive = subunits[:, y : y + 3, x : x + 3] * weights["conv2.weight"][channel]
                    through = gate * drive.sum() + weights["conv2.bias"][channel]
                    interneurons[channel, y, x] = max(0.0, through)
    rates = []
    for cell in range(12):
        weight = weights["readout.weight"][cell].reshape(8, 8, 8)
        drive = (weight * interneurons).sum() + weights["readout.bias"][cell]
        rates.append(math.log1p(math.exp(drive)))
    return rates


def slow_gate(circuit: RetinaCircuit, pathway: int, clip: np.ndarray) -> float:
    """1 less the activity of the amacrine cell, from light in its quadrant of the border."""
    quadrant = circuit.wiring.quadrants[pathway]
    light, n_pixels = 0.0, 0
    for y in range(24):
        for x in range(24):
            on_border = min(y, x) < 4 or max(y, x) >= 20
            if on_border and 2 * (y >= 12) + (x >= 12) == quadrant:
                light += clip[-4:, y, x].mean()
                n_pixels += 1
    away = light / n_pixels - circuit.amacrine.threshold
    return 1.0 - 1.0 / (1.0 + math.exp(16.0 * away))


def test_rates_and_gates_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(3, HISTORY, SIZE, SIZE, generator=generator, dtype=torch.float64)
    clips[1:, :, :12, :] += 1.0  # opens the gates of two quadrants
    clips[2, :, :, :12] += 0.55  # half opens a third
    circuit = standard_circuit(seed=2).double()
    with torch.no_grad():
        rates, gates = circuit(clips), circuit.gates(clips)
    assert ((gates > 0.5).sum(1) == torch.tensor([0, 2, 3])).all()
    for sample, clip in enumerate(clips.numpy()):
        known = [slow_gate(circuit, pathway, clip) for pathway in range(4)]
        np.testing.assert_allclose(gates[sample].numpy(), known, rtol=1e-5)
        np.testing.assert_allclose(rates[sample].numpy(), slow_rates(circuit, clip), rtol=1e-6)
