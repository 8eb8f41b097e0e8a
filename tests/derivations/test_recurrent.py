"""Contributions in recurrent networks, re-derived step by step in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from condec.attribution import IntegratedGradients
from condec.attribution.contributions import Contributions, contribute
from condec.attribution.targets import Logit
from condec.basis.errors import SiteError
from condec.network.sites import Units

STEPS = 6


class Reader(nn.Module):
    """Recurrent layer, tanh, mean over time, linear read-out; input [sample, time, feature]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.rnn, self.act, self.head = layer, nn.Tanh(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.head(self.act(out).mean(1))


class Unrolled(nn.Module):
    """One cell, called at every time step; the read-out sees the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.RNNCell(2, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 3)
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state)


def lstm_by_hand(layer: nn.LSTM, x: Tensor) -> Tensor:
    """Every state of one sample [time, feature], by the equations of the LSTM."""
    h = c = torch.zeros(3, dtype=torch.float64)
    states = []
    for now in x:
        gates = (
            layer.weight_ih_l0 @ now + layer.bias_ih_l0 + layer.weight_hh_l0 @ h + layer.bias_hh_l0
        )
        take, forget, new, out = gates.view(4, 3)
        c = torch.sigmoid(forget) * c + torch.sigmoid(take) * torch.tanh(new)
        h = torch.sigmoid(out) * torch.tanh(c)
        states.append(h)
    return torch.stack(states)


def gru_by_hand(layer: nn.GRU, x: Tensor) -> Tensor:
    h = torch.zeros(3, dtype=torch.float64)
    states = []
    for now in x:
        a, b = (
            layer.weight_ih_l0 @ now + layer.bias_ih_l0,
            layer.weight_hh_l0 @ h + layer.bias_hh_l0,
        )
        reset, update = torch.sigmoid(a[:3] + b[:3]), torch.sigmoid(a[3:6] + b[3:6])
        h = (1 - update) * torch.tanh(a[6:] + reset * b[6:]) + update * h
        states.append(h)
    return torch.stack(states)


def trapezoid(lower: Callable[[Tensor], Tensor], upper: Callable[[Tensor], Tensor], x: Tensor):  # type: ignore[no-untyped-def]
    """Contributions of one sample, with the network cut in two by hand."""
    hs, gs = [], []
    for k in range(STEPS + 1):
        h = lower(x * (k / STEPS)).detach().requires_grad_()
        (g,) = torch.autograd.grad(upper(h), h)
        hs.append(h.detach())
        gs.append(g)
    total = torch.zeros_like(hs[0])
    for k in range(1, STEPS + 1):
        total += (hs[k] - hs[k - 1]) * (gs[k] + gs[k - 1]) / 2
    return total


def run(model: nn.Module, x: Tensor, sites: str, steps: int = STEPS) -> Contributions:
    return contribute(model, x, sites, method=IntegratedGradients(steps=steps), target=Logit(1))


@pytest.mark.parametrize(
    ("layer", "by_hand"), [(nn.LSTM, lstm_by_hand), (nn.GRU, gru_by_hand)], ids=["lstm", "gru"]
)
def test_recurrent_layers_equal_the_loop(layer, by_hand) -> None:  # type: ignore[no-untyped-def]
    model = Reader(layer(2, 3, batch_first=True)).double().eval()
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    batch = run(model, x, "rnn")
    assert batch["rnn"].cut
    assert batch["rnn"].units == Units("features")
    for i in range(4):
        slow = trapezoid(
            lambda z: by_hand(model.rnn, z), lambda h: model.head(torch.tanh(h).mean(0))[1], x[i]
        )
        assert torch.allclose(batch["rnn"].contribution[i], slow, atol=1e-12)
    reduced = batch.reduce()["rnn"].contribution
    assert torch.allclose(reduced.sum(1), batch["rnn"].contribution.sum(1))  # [sample, unit]


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_contributions_of_recurrent_layers_add_up(layer) -> None:  # type: ignore[no-untyped-def]
    model = Reader(layer(2, 3, batch_first=True, num_layers=2)).double().eval()
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    for share in run(model, x, "rnn, act", steps=200).completeness().values():
        assert torch.allclose(share, torch.ones(4).double(), atol=1e-3)


def test_calls_of_a_cell_equal_the_loop() -> None:
    model = Unrolled().double().eval()
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    batch = run(model, x, "cell#1, cell#3")
    assert not batch["cell#1"].cut  # what comes in later passes by it
    assert batch["cell#3"].cut
    cell = model.cell

    def step(h: Tensor, now: Tensor) -> Tensor:
        return torch.tanh(cell.weight_ih @ now + cell.bias_ih + cell.weight_hh @ h + cell.bias_hh)

    for i in range(3):
        hs, gs = [], []
        for k in range(STEPS + 1):
            z, h = x[i] * (k / STEPS), torch.zeros(3, dtype=torch.float64)
            for t in (0, 1):
                h = step(h, z[t])
            site = h.detach().requires_grad_()
            target = model.head(step(step(site, z[2]), z[3]))[1]
            (g,) = torch.autograd.grad(target, site)
            hs.append(site.detach())
            gs.append(g)
        slow = sum((hs[k] - hs[k - 1]) * (gs[k] + gs[k - 1]) / 2 for k in range(1, STEPS + 1))
        assert torch.allclose(batch["cell#1"].contribution[i], slow, atol=1e-12)
    share = run(model, x, "cell#3", steps=200).completeness()["cell#3"]
    assert torch.allclose(share, torch.ones(3).double(), atol=1e-3)
    with pytest.raises(
        SiteError, match=r"cell is called 4 times .*: cell#0, cell#1, cell#2, cell#"
    ):
        run(model, x, "cell")


@pytest.mark.parametrize("n_steps", [4, 5])
def test_sequences_first_are_refused_also_where_the_numbers_agree(n_steps: int) -> None:
    class SequenceFirst(Reader):
        def forward(self, x: Tensor) -> Tensor:
            out, _ = self.rnn(x.transpose(0, 1))
            return self.head(self.act(out).mean(0))

    model = SequenceFirst(nn.LSTM(2, 3)).eval()
    with pytest.raises(SiteError, match=r"rnn has shape .* for 2 samples .*samples first"):
        run(model, torch.randn(4, n_steps, 2), "rnn")


def test_a_site_that_the_read_out_goes_round_is_named() -> None:
    class LastState(Reader):
        def forward(self, x: Tensor) -> Tensor:
            _, (h, _) = self.rnn(x)
            return self.head(h[-1])

    model = LastState(nn.LSTM(2, 3, batch_first=True)).eval()
    with pytest.raises(SiteError, match="none of the sites rnn"):
        run(model, torch.randn(4, 5, 2), "rnn")


@pytest.mark.gpu
@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_on_a_gpu_the_same_in_evaluation_mode(layer) -> None:  # type: ignore[no-untyped-def]
    model = Reader(layer(2, 3, batch_first=True, num_layers=2, dropout=0.5)).eval()
    x = torch.randn(4, 5, 2)
    expected = run(model, x, "rnn")["rnn"].contribution
    given = run(model.cuda(), x, "rnn")["rnn"].contribution
    assert torch.allclose(given.cpu(), expected, atol=1e-5)
    assert not model.rnn.training
    assert model.rnn.dropout == 0.5
