"""Places re-derived in float64, position by position: layouts, sums over them, and loadings."""

import itertools

import pytest
import torch
from torch import Tensor

from condec.attribution import IntegratedGradients, by_position, split_and_sum
from condec.attribution.contributions import contribute
from condec.attribution.reduce import position_numbers, unit_numbers
from condec.attribution.targets import Logit
from condec.dictionary import NMF, PCA, fit
from condec.modes import Modes
from condec.network import FoldedUnits, Units
from condec.store import Store, collect
from condec.testing.models import small_resnet

N, SITE = 8, "block1"

CASES = [
    (Units("channels"), (2, 3, 2, 5)), (Units("channels"), (2, 3, 4)), (Units("channels"), (2, 3)),
    (Units("features"), (2, 4, 3)), (Units("features"), (2, 3)), (Units("features"), (2, 2, 4, 3)),
    (Units("features", tokens=(1, None)), (2, 4, 3)), (Units("tokens"), (2, 4, 3)),
    (Units("heads", 2), (2, 4, 6)), (Units("heads", 2, (1, 3)), (2, 4, 6)),
    (Units("positions"), (2, 3, 2, 2)), (FoldedUnits("features"), (2, 3, 4)),
    (FoldedUnits("channels"), (2, 2, 3, 2, 2)), (FoldedUnits("heads", 2), (2, 2, 3, 4)),
]  # fmt: skip


def slow(values: Tensor, units: Units) -> list[list[list[float]]]:
    """One number a unit for every sample and position, entry by entry."""
    folded, shape = isinstance(units, FoldedUnits), values.shape
    found = []
    for sample in range(shape[0]):
        places: dict[tuple[int, ...], dict[tuple[int, ...], float]] = {}
        for index in itertools.product(*map(range, shape[1:])):
            fold, rest = (index[:1], index[1:]) if folded else ((), index)
            token = None if units.tokens is None else range(shape[1])[slice(*units.tokens)]
            if token is not None and rest[0] not in token:
                continue
            if units.layout == "channels":
                unit, place = rest[:1], rest[1:]
            elif units.layout == "positions":
                unit, place = rest[1:], rest[:1]
            elif units.layout == "tokens":
                unit, place = rest[:1], rest[1:]
            elif units.layout == "features":
                unit, place = rest[-1:], rest[:-1]
            else:
                unit, place = (rest[-1] // (shape[-1] // (units.n_heads or 1)),), rest[:-1]
            here = places.setdefault((*fold, *place), {})
            here[unit] = here.get(unit, 0.0) + float(values[(sample, *index)])
        found.append([[here[u] for u in sorted(here)] for _, here in sorted(places.items())])
    return found


@pytest.mark.parametrize(("units", "shape"), CASES, ids=lambda case: str(case).replace(" ", ""))
def test_every_layout_by_position(units: Units, shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, dtype=torch.float64)
    laid = by_position(values, units)
    torch.testing.assert_close(laid, torch.tensor(slow(values, units), dtype=torch.float64))
    torch.testing.assert_close(laid.sum(1), split_and_sum(values, units).sum(1))
    position, unit = (number(units, shape) for number in (position_numbers, unit_numbers))
    again = torch.zeros(laid.shape, dtype=laid.dtype)
    counted = position >= 0
    assert torch.equal(counted, unit >= 0)
    for sample in range(shape[0]):
        index = position[counted] * laid.shape[2] + unit[counted]
        again[sample].view(-1).index_add_(0, index, values[sample][counted])
    torch.testing.assert_close(again, laid)
    if units.n_heads is None:  # entries of a head are added with their sign
        parts = torch.stack([laid.clamp(min=0).sum(1), laid.clamp(max=0).sum(1)], 1)
        torch.testing.assert_close(parts, split_and_sum(values, units))


def images() -> Tensor:
    return torch.randn(N, 1, 6, 5, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """All positions of every sample, and a few."""
    folder = tmp_path_factory.mktemp("derived")
    return tuple(  # type: ignore[return-value]
        collect(
            small_resnet(), images(), SITE, out=folder / f"{keep}.zarr", target=Logit(1),
            method=IntegratedGradients(steps=3), rows="positions", keep=keep, shard_size=3,
            progress=False,
        )
        for keep in (99, 11)
    )  # fmt: skip


@pytest.mark.parametrize("sign", ["positive", "negative", "sum", "concat"])
def test_over_all_positions_rows_add_up_to_those_of_samples(
    stores: tuple[Store, Store], sign: str
) -> None:
    rows = stores[0].matrix(SITE, sign=sign, rows="positions")  # type: ignore[arg-type]
    whole = stores[0].matrix(SITE, sign=sign)  # type: ignore[arg-type]
    sums = [[0.0] * rows.shape[1] for _ in range(N)]
    for sample, row in zip(stores[0].places(SITE).sample.tolist(), rows.tolist(), strict=True):
        sums[sample] = [a + b for a, b in zip(sums[sample], row, strict=True)]
    torch.testing.assert_close(whole, torch.tensor(sums), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("learner", [NMF(2), PCA(3)])
def test_loadings_are_sums_over_positions_exact_or_estimated(
    stores: tuple[Store, Store], learner: NMF | PCA
) -> None:
    matrix = stores[0].matrix(SITE, sign="positive", rows="positions")
    dictionary = fit(learner, matrix).dictionary
    batch = contribute(
        small_resnet(), images(), SITE, method=IntegratedGradients(steps=3), target=Logit(1)
    )
    part = batch[SITE].contribution
    for store in stores:
        modes, places = Modes.build(dictionary, store, SITE, rows="positions"), store.places(SITE)
        assert modes.rows == "positions"
        wanted = torch.zeros(N, learner.n_modes, dtype=torch.float64)
        for sample in range(N):
            kept = places.position[places.sample == sample].tolist()
            for position in kept:
                row = part[sample, :, position // 5, position % 5].clamp(min=0)
                wanted[sample] += dictionary.encode(row[None])[0].double() * 30 / len(kept)
        wanted = wanted[:, modes.ids]
        torch.testing.assert_close(modes.loadings.double(), wanted, rtol=1e-4, atol=1e-6)
        assert len(modes)
    apart = dictionary.training.held_out_rows  # type: ignore[union-attr]
    held_out = set(stores[0].places(SITE).sample[apart].tolist())
    whole = Modes.build(dictionary, stores[0], SITE, rows="positions").held_out
    assert set(whole.nonzero().flatten().tolist()) == held_out
