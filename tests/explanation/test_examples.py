"""Inputs that are worth a look: typical, misclassified and outlying ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from condec.attribution import ActGrad
from condec.basis.errors import OptionError
from condec.dictionary import KMeans, TrainConfig, fit
from condec.explanation import example_rows
from condec.modes import Modes
from condec.store import collect
from condec.testing.models import small_resnet

N = 12


@pytest.fixture(scope="module")
def modes(tmp_path_factory: pytest.TempPathFactory) -> Modes:
    images = torch.randn(N, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = small_resnet()(images).argmax(1)
    labels[[2, 5, 9]] = (labels[[2, 5, 9]] + 1) % 3
    labels[11] = -1
    out: Path = tmp_path_factory.mktemp("examples") / "s.zarr"
    store = collect(
        small_resnet(), (images, labels), "block2", out=out, method=ActGrad(), progress=False
    )
    found = fit(KMeans(2), store.matrix("block2"), config=TrainConfig(held_out=0.0))
    made = Modes.build(found.dictionary, store, "block2")
    loadings = torch.rand(N, len(made), generator=torch.Generator().manual_seed(1))
    loadings[0] = 0  # of which nothing can be typical
    return replace(made, loadings=loadings)


def distances(modes: Modes) -> list[float]:
    """Distance from the mean of the class over the length of that mean, by plain loops."""
    labels, rows = modes.store.labels.tolist(), modes.loadings.tolist()
    found = []
    for label, row in zip(labels, rows, strict=True):
        mine = [other for other, its in zip(rows, labels, strict=True) if its == label]
        mean = [sum(column) / len(mine) for column in zip(*mine, strict=True)]
        away = sum((a - b) ** 2 for a, b in zip(row, mean, strict=True)) ** 0.5
        found.append(away / sum(b * b for b in mean) ** 0.5)
    return found


def test_examples_by_a_slow_loop(modes: Modes) -> None:
    store, away = modes.store, distances(modes)
    wrong = [int(row) for row in store.target.argsort(descending=True) if row in (2, 5, 9)]
    assert example_rows(modes, "misclassified", 2) == wrong[:2]
    known = [row for row in range(N) if row != 11]
    assert example_rows(modes, "outlying", N) == sorted(known, key=lambda row: -away[row])
    typical = example_rows(modes, "typical", N)
    labels = store.labels[typical].tolist()
    assert len({*labels}) == len(labels)
    assert -1 not in labels
    for row, label in zip(typical, labels, strict=True):
        same = [r for r in range(N) if store.labels[r] == label and r not in (0, *wrong)]
        assert away[row] == min(away[r] for r in same)


def test_without_labels_and_predictions_all_inputs_are_one_class(
    modes: Modes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("labels", "predictions"):
        monkeypatch.setattr(type(modes.store), name, torch.full((N,), -1))
    away = distances(modes)
    assert example_rows(modes, "outlying", 3) == sorted(range(N), key=lambda row: -away[row])[:3]
    assert example_rows(modes, "typical", N) == [min(range(1, N), key=lambda row: away[row])]


def test_kinds_are_known(modes: Modes, unchecked: None) -> None:
    with pytest.raises(OptionError, match="kind must be one of typical, misclassified, outlying"):
        example_rows(modes, "odd")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="n must be at least 1; got 0"):
        example_rows(modes, "typical", 0)
