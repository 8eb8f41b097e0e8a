"""Erasure: what a change of the input adds is taken out, the rest stays as it can."""

import pytest
import torch
from torch import nn

from condec.basis.errors import DataError, OptionError, SiteError
from condec.edits import Erase, baked, edited, erasure, record_activation
from condec.testing.models import small_resnet

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(200, 5, generator=GENERATOR) @ torch.diag(torch.tensor([3.0, 1.0, 0.1, 1.0, 1.0]))


def linear():
    return nn.Sequential(nn.Identity(), nn.Linear(5, 2)).eval()


def test_a_change_along_one_direction_goes_entirely_and_others_hardly_move():
    change = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])
    edit = erasure(linear(), "0", X, X + change, n_directions=1)
    assert torch.allclose(edit.apply(X + change), edit.apply(X), atol=1e-5)
    # Read on the third unit, which hardly varies by itself: other inputs keep what the first holds.
    moved = (edit.apply(X) - X).norm() / X.norm()
    projected = (X @ change) / change.norm()
    assert float(moved) < 0.1 < float(projected.norm() / X.norm())


def test_vectors_of_all_positions_are_read_where_units_are_channels():
    model, images = small_resnet(), torch.rand(12, 1, 6, 6, generator=GENERATOR)
    marked = images.clone()
    marked[..., :2, :2] = 2.0
    edit = erasure(model, "block1", images, marked, n_directions=4)  # all that there is
    h = record_activation(model, images, "block1")
    assert edit.apply(h).var(0).max() < 1e-6  # nothing is left but the mean
    mean = h.mean((0, 2, 3))
    assert torch.allclose(edit.apply(h), mean[:, None, None].expand_as(h), atol=1e-4)
    with edited(model, edit), torch.no_grad():
        assert torch.allclose(model(images), model(marked), atol=1e-4)


def test_weights_of_a_model_in_double_hold_the_offset_in_double():
    model = nn.Sequential(nn.Identity(), nn.Linear(5, 2)).double().eval()
    edit = Erase("1:input", directions=[[1.0] * 5], readers=[[1.0] * 5], offsets=[1000 / 3])
    assert float(edit.map()[1][0]) == 1000 / 3
    x = X.double()
    with edited(model, edit), torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(baked(model, edit, inputs=x)(x), expected, rtol=1e-12, atol=1e-12)


class Frames(nn.Module):
    """Frames [sample, frame, channel, y, x], each through a convolution, folded into the batch."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 5, 3), nn.Linear(5, 3)

    def forward(self, x):
        h = self.conv(x.flatten(0, 1)).tanh().mean((-1, -2))
        return self.head(h.view(*x.shape[:2], 5).mean(1))


def test_units_are_those_of_a_model_that_folds_frames_into_the_batch():
    torch.manual_seed(0)
    model, x = Frames().eval(), torch.rand(6, 4, 2, 5, 5)
    marked = x + torch.tensor([1.0, 0.0])[:, None, None]
    edit = erasure(model, "conv@channels", x, marked)
    assert [len(one) for one in edit.directions] == [5]
    with torch.no_grad():
        moved = (model(marked) - model(x)).norm()
        with edited(model, edit):
            assert (model(marked) - model(x)).norm() < 0.3 * moved


def test_what_is_refused():
    model = linear()
    with pytest.raises(DataError, match=r"same ones changed; got shapes \(200, 5\) and \(3, 5\)"):
        erasure(model, "0", X, X[:3])
    with pytest.raises(DataError, match="two inputs or more"):
        erasure(model, "0", X[:1], X[:1])
    with pytest.raises(DataError, match="the change of the inputs does nothing here"):
        erasure(model, "0", X, X)
    with pytest.raises(OptionError, match="spans 1 directions; got n_directions=2"):
        erasure(model, "0", X, X + 1, n_directions=2)
    with pytest.raises(OptionError, match="n_directions must be at least 1"):
        erasure(model, "0", X, X + 1, n_directions=0)
    images = torch.rand(3, 1, 5, 5)
    with pytest.raises(SiteError, match="units of layout positions have no direction"):
        erasure(small_resnet(), "block1@positions", images, images + 1)
    with pytest.raises(OptionError, match="as many directions as readers and offsets"):
        Erase("0", directions=[[1.0]], readers=[[1.0], [2.0]], offsets=[0.0])
    with pytest.raises(OptionError, match="offsets must be finite"):
        Erase("0", directions=[[1.0]], readers=[[1.0]], offsets=[float("nan")])
    with pytest.raises(OptionError, match="reader 0 must be finite"):
        Erase("0", directions=[[1.0]], readers=[[float("inf")]], offsets=[0.0])
