"""Prototypes: the kinds of samples that were put there, the outlier, and none where none is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import condec
from condec.basis.errors import DataError, OptionError
from condec.dictionary import PCA, fit
from condec.modes import Modes, prototypes
from condec.testing.models import small_resnet


@pytest.fixture(scope="module")
def modes(tmp_path_factory: pytest.TempPathFactory) -> Modes:
    x = torch.rand(80, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0] * 60 + [1] * 12 + [-1] * 8)
    store = condec.collect(
        small_resnet(),
        (x, labels),
        "block1",
        out=tmp_path_factory.mktemp("p") / "s",
        progress=False,
    )
    fitted = fit(PCA(n_modes=3), store.matrix("block1"))
    return Modes.build(fitted.dictionary, store, "block1")


def with_loadings(modes: Modes, loadings: torch.Tensor) -> Modes:
    padded = torch.zeros(80, 3)
    padded[:60, :2] = loadings
    return replace(modes, loadings=padded)


def noise(n: int) -> torch.Tensor:
    return 0.1 * torch.randn(n, 2, generator=torch.Generator().manual_seed(1))


def test_two_kinds_of_one_class_and_a_sample_that_is_neither(modes):
    centres = torch.tensor([[1.0, 0.0]] * 40 + [[0.0, 4.0]] * 19 + [[30.0, 30.0]])
    found = prototypes(with_loadings(modes, centres + noise(60)), 0)
    assert found.table["prototype"].value_counts().sort_index().tolist()[0] == 40
    assert torch.allclose(
        found.centres[:2, :2], torch.tensor([[1.0, 0.0], [0.0, 4.0]]).double(), atol=0.1
    )
    assert len(found.centres) == 2  # a cluster of one sample is no prototype
    assert found.outliers["row"].tolist() == [59]
    assert found.table["distance"].is_monotonic_increasing
    assert (found.table["outlier"] == (found.table["distance"] > found.fence)).all()
    assert (found.leading(0, 1), found.leading(1, 1)) == ([0], [1])
    assert set(found.typical(1, 5)["row"]) <= set(range(40, 59))
    assert found.silhouette > 0.5


def test_no_outlier_is_invented_and_noise_has_one_prototype(modes):
    circle = torch.arange(60) * (2 * torch.pi / 60)
    loadings = torch.stack([circle.cos(), circle.sin()], 1) * (5 + noise(60)[:, :1])
    found = prototypes(with_loadings(modes, loadings), 0, most=1)
    assert len(found.centres) == 1
    assert found.silhouette != found.silhouette
    assert len(found.outliers) == 0
    x = torch.rand(80, 1, 6, 6)
    names = [text.get_text() for text in found.draw(x).texts]
    assert names == ["prototype 0", "60 inputs", "mode 0", "outliers", "none found"]


@pytest.mark.parametrize("jitter", [0.0, 1e-8])
def test_where_half_of_a_class_is_alike_no_outlier_is_told(modes, jitter):
    loadings = torch.tensor([[1.0, 0.0]] * 50 + [[1.0, 0.1]] * 10) + jitter * noise(60)
    loadings[50:] += noise(10)
    found = prototypes(with_loadings(modes, loadings), 0, most=1)
    assert (len(found.outliers), found.fence) == (0, float("inf"))
    names = [text.get_text() for text in found.draw(torch.rand(80, 1, 6, 6)).texts]
    assert names[-3:] == ["outliers", "not told:", "inputs are alike"]


def test_pictures_are_named_by_their_predictions(modes):
    x = torch.rand(80, 1, 6, 6)
    figure = prototypes(modes, 0).draw(x, n=2)
    words = {axis.get_xlabel() for axis in figure.axes}
    assert words <= {f"predicted {label}" for label in range(3)}
    assert words


def test_what_is_refused(modes, tmp_path: Path):
    with pytest.raises(
        DataError, match="label 1 has 12 samples, too few for prototypes; expected 20"
    ):
        prototypes(modes, 1)
    with pytest.raises(DataError, match="label 9 has 0 samples"):
        prototypes(modes, 9)
    with pytest.raises(OptionError, match="most must be at least 1; got 0"):
        prototypes(modes, 0, most=0)


def test_data_that_lack_a_sample_are_refused_where_it_is_drawn(modes):
    with pytest.raises(DataError, match=r"lacks \d+ samples of label 0; the first are \["):
        prototypes(modes, 0).draw(torch.rand(10, 1, 6, 6))
