"""ThresholdSAE against plain loops in float64: codes, loss, and the first step of Adam.

Source: Melander et al. 2026, "STSAE": three linear layers with layer norms, a sigmoid, a hard
threshold whose mask passes no gradient, mean squared error over all entries plus mean |atom|.
"""

import math

import pytest
import torch

from condec.dictionary import Dictionary, ThresholdSAE, TrainConfig, fit

UNITS, WIDTH, MODES, ROWS = 4, 5, 6, 12
OPTIONS = {"width": WIDTH, "threshold": 0.5, "atom_l1": 0.03, "dropout": 0.0, "resample": False}
LEARNER = ThresholdSAE(MODES, atom_rate=1.0, jump=0.0, **OPTIONS)
JUMP = 1.0
LR = 1e-3


def rows():
    return torch.rand(ROWS, UNITS, generator=torch.Generator().manual_seed(3))


def linear(weight, bias, x):
    return [
        sum(w * v for w, v in zip(row, x, strict=True)) + b
        for row, b in zip(weight, bias, strict=True)
    ]


def layer_norm(weight, bias, x):
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    return [
        w * (v - mean) / math.sqrt(variance + 1e-5) + b
        for w, v, b in zip(weight, x, bias, strict=True)
    ]


def hidden(t, x):
    """What the last linear layer reads."""
    for i, norm in ((0, 3), (4, 7)):
        x = linear(t[f"encoder.{i}.weight"], t[f"encoder.{i}.bias"], x)
        x = [max(v, 0.0) for v in x]
        x = layer_norm(t[f"encoder.{norm}.weight"], t[f"encoder.{norm}.bias"], x)
    return x


def codes(t, x):
    pre = linear(t["encoder.8.weight"], [0.0] * MODES, hidden(t, x))
    return [1.0 / (1.0 + math.exp(-v)) for v in pre]


def plain(dictionary):
    return {name: tensor.double().tolist() for name, tensor in dictionary.tensors.items()}


def decoded(atoms, z):
    return [sum(z[m] * atoms[m][u] for m in range(MODES)) for u in range(UNITS)]


def loss(t, data, threshold):
    error = 0.0
    for x in data:
        z = [c if c >= threshold else 0.0 for c in codes(t, x)]
        error += sum((a - b) ** 2 for a, b in zip(x, decoded(t["atoms"], z), strict=True))
    size = sum(abs(v) for atom in t["atoms"] for v in atom) / (MODES * UNITS)
    return error / (len(data) * UNITS) + LEARNER.atom_l1 * size


def start_of(data, learner=LEARNER):
    """Tensors before the first step: made as `fit` makes them, with a step of no length."""
    config = TrainConfig(epochs=1, batch_size=len(data), lr=1e-30, held_out=0.0)
    return fit(learner, data, config=config).dictionary


def one_step(data, learner=LEARNER):
    config = TrainConfig(epochs=1, batch_size=len(data), lr=LR, held_out=0.0, threshold_warmup=0.0)
    return fit(learner, data, config=config)


def test_loadings():
    dictionary = start_of(rows())
    t = plain(dictionary)
    found = dictionary.encode(rows())
    used = 0
    for x, row in zip(rows().double().tolist(), found.tolist(), strict=True):
        scaled = [v / dictionary.scale for v in x]
        expected = [c if c >= 0.5 else 0.0 for c in codes(t, scaled)]
        used += sum(c > 0 for c in expected)
        assert row == pytest.approx(expected, abs=1e-6)
    assert 0 < used < ROWS * MODES


def test_loss():
    report = one_step(rows())
    before = start_of(rows())
    data = (rows().double() / report.dictionary.scale).tolist()
    assert report.history[0] == pytest.approx(loss(plain(before), data, 0.5), rel=1e-5)


def test_first_step_of_the_atoms():
    after, before = one_step(rows()).dictionary, start_of(rows())
    t, data = plain(before), (rows().double() / before.scale).tolist()
    for m in range(MODES):
        for u in range(UNITS):
            gradient = math.copysign(LEARNER.atom_l1, t["atoms"][m][u]) / (MODES * UNITS)
            for x in data:
                z = [c if c >= 0.5 else 0.0 for c in codes(t, x)]
                error = decoded(t["atoms"], z)[u] - x[u]
                gradient += 2.0 * z[m] * error / (ROWS * UNITS)
            # Adam's first step has the length of the rate, whatever the gradient's.
            expected = t["atoms"][m][u] - LR * gradient / (abs(gradient) + 1e-8)
            assert float(after.tensors["atoms"][m, u]) == pytest.approx(expected, abs=2e-6)


def test_first_step_of_the_encoder_sees_codes_in_use_only():
    after, before = one_step(rows()).dictionary, start_of(rows())
    t, data = plain(before), (rows().double() / before.scale).tolist()
    for m in range(MODES):
        gradient = [0.0] * WIDTH
        for x in data:
            c = codes(t, x)
            z = [v if v >= 0.5 else 0.0 for v in c]
            if c[m] < 0.5:
                continue  # The mask is a constant: a code below the threshold gets no gradient.
            errors = [a - b for a, b in zip(decoded(t["atoms"], z), x, strict=True)]
            slope = sum(2.0 * e * t["atoms"][m][u] for u, e in enumerate(errors))
            slope *= c[m] * (1.0 - c[m]) / (ROWS * UNITS)
            gradient = [g + slope * h for g, h in zip(gradient, hidden(t, x), strict=True)]
        for i, g in enumerate(gradient):
            expected = t["encoder.8.weight"][m][i] - LR * g / (abs(g) + 1e-8)
            assert float(after.tensors["encoder.8.weight"][m, i]) == pytest.approx(
                expected, abs=2e-6
            )


def test_atoms_move_faster_by_their_rate():
    fast = ThresholdSAE(MODES, atom_rate=3.0, jump=0.0, **OPTIONS)
    slow, quick = one_step(rows()).dictionary, one_step(rows(), fast).dictionary
    before = start_of(rows())
    moved, further = (d.tensors["atoms"] - before.tensors["atoms"] for d in (slow, quick))
    torch.testing.assert_close(further, 3.0 * moved, rtol=1e-3, atol=1e-6)
    for name, tensor in slow.tensors.items():
        if name.startswith("encoder."):
            torch.testing.assert_close(quick.tensors[name], tensor)


def test_first_step_of_the_encoder_sees_what_crossing_does():
    learner = ThresholdSAE(MODES, atom_rate=1.0, jump=JUMP, **OPTIONS)
    after, before = one_step(rows(), learner).dictionary, start_of(rows(), learner)
    t, data = plain(before), (rows().double() / before.scale).tolist()
    crossings = 0
    for m in range(MODES):
        gradient = [0.0] * WIDTH
        for x in data:
            c = codes(t, x)
            z = [v if v >= 0.5 else 0.0 for v in c]
            errors = [a - b for a, b in zip(decoded(t["atoms"], z), x, strict=True)]
            slope = 0.0
            if z[m]:
                slope += sum(2.0 * e * a for e, a in zip(errors, t["atoms"][m], strict=True))
                slope *= c[m] * (1.0 - c[m])
            if abs(math.log(c[m] / (1.0 - c[m]))) < JUMP / 2:
                crossings += 1
                off = [e - z[m] * a for e, a in zip(errors, t["atoms"][m], strict=True)]
                on = [e + 0.5 * a for e, a in zip(off, t["atoms"][m], strict=True)]
                slope += (sum(e * e for e in on) - sum(e * e for e in off)) / JUMP
            h = hidden(t, x)
            gradient = [g + slope * v / (ROWS * UNITS) for g, v in zip(gradient, h, strict=True)]
        for i, g in enumerate(gradient):
            expected = t["encoder.8.weight"][m][i] - LR * g / (abs(g) + 1e-8)
            assert float(after.tensors["encoder.8.weight"][m, i]) == pytest.approx(
                expected, abs=2e-6
            )
    assert 0 < crossings < ROWS * MODES


def test_decoding_undoes_the_scale():
    dictionary: Dictionary = start_of(1000.0 * rows())
    found = dictionary.decode(dictionary.encode(1000.0 * rows()))
    t = plain(dictionary)
    for x, row in zip((1000.0 * rows()).double().tolist(), found.tolist(), strict=True):
        c = codes(t, [v / dictionary.scale for v in x])
        z = [v if v >= 0.5 else 0.0 for v in c]
        expected = [dictionary.scale * v for v in decoded(t["atoms"], z)]
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-2)
