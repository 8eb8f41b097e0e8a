"""Targets of rates: one cell, the population, and how unusual its response is."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from condec import contribute
from condec.attribution import IntegratedGradients
from condec.attribution.targets import Logit, Sum, Surprisal
from condec.basis.errors import DataError, OptionError
from condec.store.collection import collect

CELLS, METHOD = 5, IntegratedGradients(steps=4)


def clips(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed))


def network(scale: float = 1.0) -> nn.Module:
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, CELLS), nn.Softplus()
    )
    with torch.no_grad():
        model[3].weight.mul_(scale)
    return model.eval()


def contributions(target, n: int = 6) -> Tensor:
    return contribute(network(), clips(n), "1", method=METHOD, target=target)["1"].contribution


def test_one_cell_is_its_rate() -> None:
    model, x = network(), clips(6)
    with torch.no_grad():
        rates, dark = model(x), model(torch.zeros(1, 3, 5, 5))
    batch = contribute(model, x, "1", method=METHOD, target=Logit(2))
    torch.testing.assert_close(batch.target, rates[:, 2])
    total = batch["1"].contribution.flatten(1).sum(1)
    torch.testing.assert_close(total, rates[:, 2] - dark[:, 2], atol=2e-2, rtol=2e-2)


def test_the_population_is_the_sum_of_its_cells() -> None:
    alone = sum(contributions(Logit(cell)) for cell in range(CELLS))
    torch.testing.assert_close(contributions(Sum()), alone)
    some = contributions(Logit(1)) + contributions(Logit(3))
    torch.testing.assert_close(contributions(Sum((1, 3))), some)
    with pytest.raises(OptionError, match=r"index 5 is out of range; the output has 5 labels"):
        contributions(Logit(5))


def test_surprisal_is_that_of_training_frames(tmp_path) -> None:
    model, test = network(), clips(8)
    with torch.no_grad():
        rates, of_training = model(test), model(clips(40, seed=1))
    target = Surprisal.fit(of_training)
    store = collect(
        model, test, "1", method=METHOD, target=target, out=tmp_path / "a.zarr", progress=False
    )
    torch.testing.assert_close(store.target, target.value(rates, None))
    # Other test frames leave a frame's own number and contributions alone.
    fewer = collect(
        model, test[:3], "1", method=METHOD, target=target, out=tmp_path / "b.zarr", progress=False
    )
    torch.testing.assert_close(fewer.target, store.target[:3])
    torch.testing.assert_close(fewer.matrix("1"), store.matrix("1")[:3])


def test_fewer_frames_than_cells(tmp_path) -> None:
    options = {"method": METHOD, "progress": False}
    plain = Surprisal(shrinkage=0.0)
    with pytest.raises(DataError, match=r"4 samples of 5 outputs: the covariance is singular\. G"):
        collect(network(), clips(4), "1", target=plain, out=tmp_path / "a.zarr", **options)
    with pytest.raises(DataError, match=r"4 samples of 5 outputs: the covariance is singular\. G"):
        collect(
            network(), clips(9), "1", fit_on=clips(4), target=plain, out=tmp_path / "a.zarr",
            **options,
        )  # fmt: skip
    shrunk = collect(
        network(), clips(4), "1", target=Surprisal(), out=tmp_path / "b.zarr", **options
    )
    assert bool(shrunk.target.isfinite().all())


def test_a_cell_that_never_answers_is_named(tmp_path) -> None:
    # Its rates differ in the last digit, by how many samples are computed at a time.
    silent = network(scale=0.0)
    with pytest.raises(DataError, match=r"5 of 5 outputs are the same for all 9 samples: \[0, 1,"):
        collect(
            silent, clips(9), "1", target=Surprisal(), out=tmp_path / "a.zarr", method=METHOD,
            progress=False,
        )  # fmt: skip


def test_a_fitted_surprisal_says_which_cells_it_knows() -> None:
    with torch.no_grad():
        target = Surprisal.fit(network()(clips(40)))
    other = replace(target, mean=target.mean[:4], precision=target.precision[:4, :4])
    with pytest.raises(OptionError, match="fitted to 4 outputs; the model gives 5"):
        contributions(other)
