"""Training models of the retina: what is learnt, held out, kept, and gone on with."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from condec.basis.errors import DataError, ModelError, OptionError, StoreError
from condec.report.facts import Fact
from condec.retina import (
    Recording,
    RetinaEpoch,
    RetinaTraining,
    fit_model,
    poisson_loss,
    respond,
)
from condec.retina.fitting import split_blocks
from condec.retina.page import _facts

HISTORY, SIDE, CELLS = 6, 5, 3
CONFIG = RetinaTraining(history=HISTORY, epochs=4, lr=5e-3, batch_size=64, held_out=0.2)


class Noise(nn.Module):
    """Draws in training, as the network of McIntosh et al. 2016 does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * torch.randn_like(x) if self.training else x


def network(seed: int = 0, cells: int = CELLS) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(HISTORY, 4, 3), nn.BatchNorm2d(4), Noise(), nn.ReLU(), nn.Flatten(),
        nn.Linear(36, cells), nn.Softplus(),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def recording() -> Recording:
    """Answers of a network that there is something to learn of."""
    torch.manual_seed(7)
    movie = torch.randn(900, SIDE, SIDE)
    truth = nn.Sequential(nn.Conv2d(HISTORY, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, CELLS))
    truth = nn.Sequential(*truth, nn.Softplus()).eval()
    for parameter in truth.parameters():
        parameter.data *= 3
    rates = respond(truth, Recording(movie=movie).windows(HISTORY)).rates
    rates = torch.cat((torch.zeros(HISTORY, CELLS), rates))
    return Recording(movie=movie, rates=rates, cells=("a", "b", "c"), name="known")


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first | second)


# --- what comes of it ------------------------------------------------------------------------


def test_a_known_network_is_learnt(recording: Recording) -> None:
    config = dataclasses.replace(CONFIG, epochs=25, lr=1e-2)
    model = network()
    before = weights(model)
    fitted = fit_model(model, recording, config)
    assert float(fitted.correlation.min()) > 0.9
    assert float(respond(model, recording.windows(HISTORY)).correlation.max()) < 0.7
    assert same(weights(model), before)
    assert not fitted.model.training
    assert fitted.cells == ("a", "b", "c")
    # Both are measured again from the model that is handed over.
    held_out = recording.windows(HISTORY).select(fitted.held_out_rows.tolist())
    found = respond(fitted.model, held_out).correlation
    assert torch.allclose(found, fitted.correlation)
    assert recording.rates is not None
    answers = recording.rates[HISTORY:][fitted.held_out_rows]
    predicted = respond(fitted.model, held_out).rates
    best = fitted.history[fitted.best_epoch]
    assert float(poisson_loss(predicted, answers)) == pytest.approx(best.held_out_loss, rel=1e-5)
    assert best.held_out_loss == min(epoch.held_out_loss for epoch in fitted.history)
    assert best.correlation == pytest.approx(float(fitted.correlation.mean()), abs=1e-5)


def test_stops_when_the_held_out_loss_does_not_fall_and_keeps_best(recording: Recording) -> None:
    torch.manual_seed(0)
    noise = dataclasses.replace(recording, rates=torch.rand(900, CELLS))  # nothing to learn
    seen: list[RetinaEpoch] = []
    config = dataclasses.replace(CONFIG, epochs=200, patience=3, lr=2e-2)
    fitted = fit_model(network(), noise, config, on_epoch=seen.append)
    assert tuple(seen) == fitted.history
    assert len(seen) == fitted.best_epoch + 4 < 200
    assert seen[-1].loss < seen[fitted.best_epoch].loss  # it went on to learn by heart
    again = fit_model(network(), noise, dataclasses.replace(config, epochs=fitted.best_epoch + 1))
    assert same(weights(again.model), weights(fitted.model))


def test_penalties_are_added_to_the_training_loss(recording: Recording) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(HISTORY * SIDE**2, CELLS), nn.Softplus())
    config = dataclasses.replace(CONFIG, epochs=1, batch_size=10_000, lr=1e-9)
    plain = fit_model(model, recording, config)
    rates = respond(
        model.eval(), recording.windows(HISTORY).select(plain.train_rows.tolist())
    ).rates
    assert recording.rates is not None
    answers = recording.rates[HISTORY:][plain.train_rows]
    wanted = float((rates - answers * (rates + 1e-8).log()).mean())
    assert plain.history[0].loss == pytest.approx(wanted, rel=1e-4)
    both = fit_model(model, recording, dataclasses.replace(config, weight_l2=0.5, activity_l1=0.3))
    wanted += 0.5 * float(model[1].weight.detach().square().sum()) + 0.3 * float(rates.mean())
    assert both.history[0].loss == pytest.approx(wanted, rel=1e-4)
    assert both.history[0].held_out_loss == pytest.approx(plain.history[0].held_out_loss, rel=1e-4)


def test_seeds(recording: Recording) -> None:
    first, again, other = (
        fit_model(network(), recording, dataclasses.replace(CONFIG, epochs=1, seed=seed))
        for seed in (1, 1, 2)
    )
    assert same(weights(first.model), weights(again.model))
    assert not same(weights(first.model), weights(other.model))
    state = torch.get_rng_state()
    fit_model(network(), recording, dataclasses.replace(CONFIG, epochs=1))
    torch.manual_seed(0)  # as `network` left it
    network()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.gpu
def test_on_a_gpu(recording: Recording) -> None:
    config = dataclasses.replace(CONFIG, epochs=10, device="cuda")
    fitted = fit_model(network(), recording, config)
    assert next(fitted.model.parameters()).device.type == "cpu"
    assert float(fitted.correlation.min()) > 0.7
    held_out = recording.windows(HISTORY).select(fitted.held_out_rows.tolist())
    found = respond(fitted.model.cuda(), held_out).correlation
    assert torch.allclose(found, fitted.correlation, atol=1e-3)


# --- what is held out ------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "share", "blocks"), [(900, 0.2, 3), (500, 0.1, 1), (321, 0.3, 2)])
def test_blocks_share_no_frame_with_training_samples(n: int, share: float, blocks: int) -> None:
    train, held = split_blocks(n, share, blocks, HISTORY)
    assert len(held) == pytest.approx(share * n, abs=blocks)
    assert int((held.diff() > 1).sum()) == blocks - 1
    frames = [
        {frame for row in rows.tolist() for frame in range(row, row + HISTORY + 1)}
        for rows in (train, held)
    ]
    assert not frames[0] & frames[1]
    # No sample is left out for nothing: the next one to each gap would share a frame.
    assert len(train) == n - len(held) - 2 * blocks * HISTORY


def test_too_short_for_blocks() -> None:
    with pytest.raises(DataError, match="30 samples are too few for 3 held-out blocks of 1 and 6"):
        split_blocks(30, 0.1, 3, 6)
    with pytest.raises(DataError, match="take a longer movie, fewer blocks, or another share"):
        split_blocks(60, 0.5, 3, 20)


# --- going on --------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [0, 2])
def test_bit_equal_after_an_interruption(recording: Recording, tmp_path: Path, after: int) -> None:
    def stop(epoch: RetinaEpoch) -> None:
        if epoch.index == after:
            raise Stop

    whole = fit_model(network(), recording, CONFIG)
    with pytest.raises(Stop):
        fit_model(
            network(), recording, CONFIG, checkpoint=tmp_path, checkpoint_seconds=0.0, on_epoch=stop
        )
    torch.manual_seed(99)  # whatever was drawn in between
    seen: list[RetinaEpoch] = []
    again = fit_model(network(), recording, CONFIG, checkpoint=tmp_path, on_epoch=seen.append)
    assert len(seen) == 4 - after - 1
    assert again.history == whole.history
    assert same(weights(again.model), weights(whole.model))
    assert torch.equal(again.correlation, whole.correlation)
    seen.clear()
    done = fit_model(network(), recording, CONFIG, checkpoint=tmp_path, on_epoch=seen.append)
    assert not seen
    assert same(weights(done.model), weights(whole.model))


def test_checkpoint_of_another_fit_is_refused(recording: Recording, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1)
    fit_model(network(), recording, config, checkpoint=tmp_path, checkpoint_seconds=0.0)
    for model, data, other in (
        (network(1), recording, config),
        (network(), dataclasses.replace(recording, rates=recording.rates * 2), config),  # type: ignore[operator]
        (network(), recording, dataclasses.replace(config, lr=1.0)),
    ):
        with pytest.raises(StoreError, match="holds the checkpoint of another fit"):
            fit_model(model, data, other, checkpoint=tmp_path)


def test_progress_is_shown(recording: Recording, capsys: pytest.CaptureFixture[str]) -> None:
    fit_model(network(), recording, dataclasses.replace(CONFIG, epochs=1), progress=True)
    assert "1/1 epochs loss" in capsys.readouterr().err


# --- correlations ----------------------------------------------------------------------------


def test_correlation_of_each_cell(recording: Recording) -> None:
    model = network()
    rows = [3, 50, 51, 200, 640]
    found = respond(model, recording.windows(HISTORY).select(rows), batch_size=2).correlation
    clips = recording.windows(HISTORY).batch(rows)
    with torch.no_grad():
        predicted = model(clips).numpy()
    answers = recording.responses(HISTORY)[rows].numpy()
    for cell in range(CELLS):
        wanted = np.corrcoef(predicted[:, cell], answers[:, cell])[0, 1]
        assert float(found[cell]) == pytest.approx(wanted, abs=1e-5)
    silent = dataclasses.replace(recording, rates=torch.zeros(900, CELLS))
    assert bool(respond(model, silent.windows(HISTORY)).correlation.isnan().all())


def test_cells_without_spikes_are_named(recording: Recording) -> None:
    rates = recording.rates.clone()
    rates[:, 1] = 0.0
    one = dataclasses.replace(recording, rates=rates)
    found = respond(network(), one.windows(HISTORY)).correlation
    assert found.isnan().tolist() == [False, True, False]
    config = dataclasses.replace(CONFIG, epochs=1)
    with pytest.warns(UserWarning, match="known: cells without spikes in the training frames: b. "):
        fit_model(network(), one, config, progress=False)
    none = dataclasses.replace(recording, rates=torch.zeros(900, CELLS))
    with pytest.raises(DataError, match="known: none of 3 cells has a spike in the training fram"):
        fit_model(network(), none, config, progress=False)


@pytest.mark.usefixtures("unchecked")
def test_the_page_names_cells_without_spikes(recording: Recording) -> None:
    responses = respond(network(), recording.windows(HISTORY))
    responses.rates[:, 2] = 0.0
    fields = SimpleNamespace(separability=torch.rand(9, 3), polarity=torch.ones(9, 3))
    facts = [*_facts(SimpleNamespace(responses=responses, fields=fields))]  # type: ignore[arg-type]
    assert Fact("1", "cells without spikes", "c") in facts


# --- messages --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1; got 0"),
        ({"history": 0}, "history must be at least 1; got 0"),
        ({"activity_l1": -1.0}, "activity_l1 must be at least 0 and finite; got -1.0"),
        ({"lr": 0.0}, "lr must be above 0 and finite; got 0.0"),
        ({"held_out": 1.0}, "held_out must be a share between 0 and 1; got 1.0"),
        ({"seed": -1}, r"seed must be from 0 to 2\*\*31 - 1; got -1"),
        ({"device": "abacus"}, "device 'abacus'"),
    ],
)
def test_bad_options(changes: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        RetinaTraining(**changes)  # type: ignore[arg-type]


def test_bad_models_and_data(recording: Recording) -> None:
    assert recording.rates is not None
    with pytest.raises(DataError, match="a movie without responses, and responses needs them"):
        fit_model(network(), Recording(movie=recording.movie), CONFIG)
    below = dataclasses.replace(recording, rates=recording.rates - 1)
    with pytest.raises(DataError, match=r"known: \d+ rates are below 0"):
        fit_model(network(), below, CONFIG)
    with pytest.raises(ModelError, match=r"of the 3 cells of the recording; got shape \(128, 2\)"):
        fit_model(network(cells=2), recording, dataclasses.replace(CONFIG, batch_size=128))
    with pytest.raises(ModelError, match=r"gives rates below 0 .* end it with torch.nn.Softplus"):
        fit_model(network()[:-1], recording, CONFIG)
    with pytest.raises(ModelError, match="Softplus has no parameter to train"):
        fit_model(nn.Softplus(), recording, CONFIG)
    with pytest.raises(ModelError, match="failed on inputs of shape"):
        fit_model(network(), recording, dataclasses.replace(CONFIG, history=4))
    with pytest.raises(ModelError, match="is in training mode"):
        respond(network().train(), recording.windows(HISTORY))


def test_a_loss_that_is_not_finite(recording: Recording) -> None:
    class Breaks(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rates = super().forward(x.flatten(1)).exp()
            return rates * torch.nan if self.training else rates

    with pytest.raises(ModelError, match=r"the loss is nan .* after epoch 0; lower lr \(it is"):
        fit_model(Breaks(HISTORY * SIDE**2, CELLS), recording, CONFIG)
