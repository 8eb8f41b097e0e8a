import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from condec.basis.errors import OptionError
from condec.dictionary import BatchTopKSAE, ThresholdSAE, TopKSAE, TrainConfig, fit
from condec.dictionary.fitting.descent import Cost, GradientLearner, learn_together, steps_of
from condec.dictionary.fitting.rows import TrainingRows
from condec.testing.planted import Planted

pytestmark = pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")


def _planted(n_rows, n_units, n_modes, active=3, support=6):
    made = torch.Generator().manual_seed(0)
    atoms = torch.zeros(n_modes, n_units)
    for atom in atoms:
        chosen = torch.randperm(n_units, generator=made)[:support]
        atom[chosen] = 0.5 + torch.rand(support, generator=made)
    atoms /= atoms.norm(dim=1, keepdim=True)
    used = torch.rand(n_rows, n_modes, generator=made) < active / n_modes
    loadings = used * (0.5 + torch.rand(n_rows, n_modes, generator=made))
    return loadings @ atoms + 0.006 * torch.rand(n_rows, n_units, generator=made)


PAPER = {"atom_rate": 1.0, "jump": 0.0, "resample": False}
"""How the paper trains: what that loop did."""
BEFORE = {
    "default": (ThresholdSAE(24, **PAPER), TrainConfig(steps=300)),
    "plateau": (
        ThresholdSAE(24, threshold=0.5, nonnegative=True, width=9, atom_l1=1e-3, **PAPER),
        TrainConfig(epochs=20, schedule="plateau", lr=1e-3, batch_size=50, seed=3),
    ),
    "constant": (
        ThresholdSAE(8, threshold=0.6, dropout=0.0, **PAPER),
        TrainConfig(
            epochs=12, schedule="constant", lr=3e-3, threshold_warmup=0.0, batch_size=64, seed=7
        ),
    ),
}
FIRST_AND_LAST_LOSS = {
    "default": (2.7635562896728514, 0.44428095817565916),
    "plateau": (2.3095035552978516, 0.7049352645874023),
    "constant": (1.997359848022461, 1.1302276611328126),
}
"""Of the training loop that this engine replaced, recorded before it was replaced."""


@pytest.mark.parametrize("name", BEFORE)
def test_figures_are_those_of_the_loop_before(name):
    learner, config = BEFORE[name]
    report = fit(learner, _planted(400, 16, 8), config=config)
    first, last = FIRST_AND_LAST_LOSS[name]
    assert report.history[0] == pytest.approx(first, rel=1e-5)
    assert report.history[-1] == pytest.approx(last, rel=2e-2)


def rising(first, learner, config, share):
    if share >= config.threshold_warmup:
        return learner.threshold
    low, high = (math.log(c / (1 - c)) for c in (first, learner.threshold))
    return 1 / (1 + math.exp(-(low + (high - low) * share / config.threshold_warmup)))


@dataclass(frozen=True, eq=False)
class Toy(GradientLearner):
    """A learner whose loss, projection and revival are given."""

    by_mode: ClassVar = ("atoms",)
    loss: Any
    change: Any = None
    revival: Any = None

    @property
    def revives(self):
        return self.revival is not None

    def pace(self, n_units):
        return 1.0, 1.0

    def start(self, sample, config):
        return {"atoms": torch.full((self.n_modes, sample.shape[1]), float(self.revives))}

    def cost(self, parameters, rows, step):
        return self.loss(parameters, rows, step)

    def project(self, parameters):
        if self.change is not None:
            self.change(parameters)

    def revive(self, parameters, modes, rows, residuals):
        self.revival(parameters, modes, rows, residuals)

    def reconstruct(self, parameters, rows):
        return torch.ones_like(rows)

    def encode(self, tensors, matrix):
        return matrix @ tensors["atoms"].T


class Slow(Toy):
    def pace(self, n_units):
        return 1.0, 1e-2


@dataclass(frozen=True, eq=False)
class Fed(Toy):
    feeds_dead: ClassVar = True


def run(learner, matrix, config):
    """One fit of prepared rows."""
    return learn_together(learner, [TrainingRows(matrix)], [config], lambda epoch: None)[0]


def loop_before(learner, matrix, config):
    """ThresholdSAE's own loop, before there was an engine: atoms and losses."""
    torch.manual_seed(config.seed)
    encoder = learner._encoder(matrix.shape[1])
    atoms = torch.empty(learner.n_modes, matrix.shape[1])
    nn.init.xavier_uniform_(atoms)
    atoms = nn.Parameter(atoms.abs() if learner.nonnegative else atoms)
    optimiser = torch.optim.Adam([*encoder.parameters(), atoms], lr=config.lr, fused=True)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=10)
    shuffle = torch.Generator().manual_seed(config.seed)
    n_steps = config.epochs * math.ceil(len(matrix) / config.batch_size)
    first = learner._first_threshold(encoder, matrix[: config.batch_size])
    history, step = [], 0
    for _ in range(config.epochs):
        total = matrix.new_zeros(())
        order = torch.randperm(len(matrix), generator=shuffle)
        for rows in torch.split(order, config.batch_size):
            if config.schedule == "cosine":
                rate = 0.5 * config.lr * (1.0 + math.cos(math.pi * step / n_steps))
                optimiser.param_groups[0]["lr"] = rate
            codes = encoder(matrix[rows])
            loadings = codes * (codes >= rising(first, learner, config, step / n_steps)).detach()
            loss = F.mse_loss(loadings @ atoms, matrix[rows])
            loss = loss + learner.atom_l1 * atoms.abs().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if learner.nonnegative:
                atoms.data.clamp_(min=0.0)
            total += loss.detach() * len(rows)
            step += 1
        history.append(float(total) / len(matrix))
        if config.schedule == "plateau":
            plateau.step(history[-1])
    return atoms.detach(), tuple(history)


@pytest.mark.parametrize("name", BEFORE)
def test_bit_for_bit_what_the_loop_before_gave(name):
    learner, config = BEFORE[name]
    matrix = _planted(400, 16, 8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        report = fit(learner, matrix, config=config)
        train = matrix[report.train_rows] / report.dictionary.scale
        atoms, history = loop_before(learner, train, report.config)
    finally:
        torch.set_num_threads(threads)
    assert report.history == history
    assert torch.equal(report.dictionary.tensors["atoms"], atoms)


def _line(target=3.0):
    """A learner of one mode: the atom goes where the rows are."""

    def loss(parameters, rows, step):
        seen.append(step)
        error = rows - parameters["atoms"]
        return Cost(error.square().mean() * target, torch.ones(len(rows), 1))

    seen = []
    return Toy(1, loss), seen


def test_clip_bounds_the_gradient():
    lengths = []

    def loss(parameters, rows, step):
        # Adam does not show the size of a gradient: look at it where it is used.
        return Cost((parameters["atoms"] * 1e6).sum(), torch.ones(len(rows), 1))

    def project(parameters):
        lengths.append(float(parameters["atoms"].grad.norm()))

    for clip in (None, 0.5):
        config = TrainConfig(epochs=1, lr=1e-3, clip=clip)
        run(Toy(1, loss, project), torch.ones(8, 2), config)
    assert lengths[0] == pytest.approx(1e6 * math.sqrt(2))
    assert lengths[1] == pytest.approx(0.5)


def test_steps_and_history():
    learner, seen = _line()
    config = TrainConfig(epochs=3, batch_size=4, lr=0.1, schedule="constant")
    found = run(learner, torch.ones(10, 2), config)
    assert [step.index for step in seen] == list(range(9))
    assert {step.n_steps for step in seen} == {9} == {steps_of(config, 10)}
    assert found.history[0] > found.history[1] > found.history[2]
    assert seen[0].dead is None
    assert not found.tensors["atoms"].requires_grad


def test_a_mode_is_dead_that_a_whole_pass_does_not_use():
    dead = []

    def loss(parameters, rows, step):
        dead.append(None if step.dead is None else step.dead.tolist())
        used = torch.tensor([[1.0, 0.0, float(step.index >= 20)]]).expand(len(rows), 3)
        return Cost(parameters["atoms"].sum(), used)

    run(Fed(3, loss), torch.ones(8, 2), TrainConfig(epochs=25, batch_size=4, lr=1e-3))
    # 8 rows are 2 steps; a tenth of the 50 steps is more.
    assert dead[1] is None
    assert dead[2] == [False, True, True]
    assert dead[21] == [False, True, False]


def test_dead_modes_are_set_to_badly_described_rows():
    revived = []
    bad = torch.tensor([0.0, 7.0])

    def loss(parameters, rows, step):
        used = torch.tensor([[1.0, 0.0]]).expand(len(rows), 2)
        return Cost(parameters["atoms"].square().sum(), used)

    def revive(parameters, modes, rows, residuals):
        revived.append((modes.tolist(), rows, residuals))
        parameters["atoms"][modes] = residuals

    rows = torch.ones(20, 2)
    rows[3] = bad + 1
    config = TrainConfig(epochs=8, batch_size=5, lr=1e-9)
    found = run(Toy(2, loss, revival=revive), rows, config)
    assert len(revived) == 4
    assert all(modes == [1] for modes, _, _ in revived)
    assert torch.equal(revived[0][2][0], bad)
    assert torch.equal(revived[0][1][0], bad + 1)
    torch.testing.assert_close(found.tensors["atoms"][1], bad)


def test_no_two_dead_modes_are_set_to_one_row():
    revived = []

    def loss(parameters, rows, step):
        used = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(len(rows), 4)
        return Cost(parameters["atoms"].square().sum(), used)

    def revive(parameters, modes, rows, residuals):
        revived.append((modes.tolist(), sorted(rows.tolist())))

    rows = torch.ones(20, 2)
    rows[3], rows[7] = torch.tensor([1.0, 50.0]), torch.tensor([2.0, 1.0])
    run(Toy(4, loss, revival=revive), rows, TrainConfig(epochs=8, batch_size=5, lr=1e-9))
    # Three are dead and two rows are badly described, one of them much worse.
    assert revived == [([1, 2], [[1.0, 50.0], [2.0, 1.0]])] * 4


def test_default_rate_makes_the_sum_of_all_rates():
    quick, slow = Toy(1, None), Slow(1, None)
    config = quick.settled(TrainConfig(steps=1000), 1280, 2)
    assert (config.epochs, config.lr) == (100, pytest.approx(2e-3))
    flat = quick.settled(TrainConfig(steps=1000, schedule="constant"), 1280, 2)
    assert flat.lr == pytest.approx(1e-3)
    assert slow.settled(TrainConfig(steps=10), 1280, 2).lr == 1e-2
    assert slow.settled(TrainConfig(lr=0.5), 1280, 2).lr == 0.5


@pytest.mark.usefixtures("unchecked")
def test_resampling_brings_dead_modes_of_a_cold_start_back():
    # Codes begin near 0.5: with the threshold at 0.97 from the start none ever passes.
    matrix = _planted(400, 16, 8)
    config = TrainConfig(steps=400, lr=3e-3, threshold_warmup=0.0)
    cold = ThresholdSAE(24, threshold=0.97, resample=False)
    with pytest.warns(UserWarning, match="all 24 modes are dead"):
        assert fit(cold, matrix, config=config).n_alive == 0
    assert ThresholdSAE(4).resample
    again = fit(ThresholdSAE(24, threshold=0.97), matrix, config=config)
    assert again.n_alive > 8
    assert again.r2 > 0.1


def test_clipped_fit_goes_through():
    report = fit(TopKSAE(6, k=2), _planted(80, 8, 4), config=TrainConfig(steps=40, clip=0.1))
    assert report.config.clip == 0.1
    assert report.history[-1] < report.history[0]


@pytest.mark.parametrize("learner", [TopKSAE(8, k=2), ThresholdSAE(16), BatchTopKSAE(8, k=2)])
def test_half_precision_is_of_products_alone(learner):
    matrix = Planted.small().matrix
    half = fit(learner, matrix, config=TrainConfig(steps=200, precision="bfloat16"))
    whole = fit(learner, matrix, config=TrainConfig(steps=200))
    assert all(value.dtype == torch.float32 for value in half.dictionary.tensors.values())
    assert half.dictionary.encode(matrix).dtype == torch.float32
    assert half.history != whole.history
    assert half.history[0] == pytest.approx(whole.history[0], rel=0.05)
    assert half.r2 == pytest.approx(whole.r2, abs=0.1)


def test_patience_stops_when_the_loss_stays():
    config = TrainConfig(epochs=300, batch_size=4, lr=0.05, schedule="constant", patience=4)
    history = run(_line()[0], torch.ones(8, 2), config).history
    assert 10 < len(history) < 300
    best = min(history[:-4])
    assert all(loss > best * 0.999 for loss in history[-4:])
    assert history[-5] <= best * 1.001


@pytest.mark.filterwarnings("ignore:fit. all 8 modes are dead")
def test_patience_waits_while_the_threshold_rises():
    config = TrainConfig(epochs=50, lr=1e-9, patience=2, schedule="constant")
    report = fit(ThresholdSAE(8), Planted.small().matrix, config=config)
    assert len(report.history) == 50 * 0.6 + 2
    assert len(fit(TopKSAE(8), Planted.small().matrix, config=config).history) == 3


def test_new_options_are_checked(unchecked):
    for options, message in (
        ({"precision": "float16"}, "precision must be one of float32, bfloat16; got 'float16'"),
        ({"patience": 0}, "patience must be a whole number of at least 1; got 0"),
        ({"memory_gib": 0.0}, "memory_gib must be above 0 and finite; got 0.0"),
    ):
        with pytest.raises(OptionError, match=message):
            TrainConfig(**options)
