"""Receptive fields of models whose fields are known, and what is refused."""

import math

import pytest
import torch
from torch import Tensor, nn

from condec.basis.errors import DataError, ModelError, OptionError
from condec.data import as_inputs
from condec.retina.fields import ReceptiveFields, receptive_fields, separate

HISTORY, SIZE = 4, 6


def clips(n: int = 9, seed: int = 0) -> Tensor:
    return torch.randn(n, HISTORY, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


class Separable(nn.Module):
    """Two cells, each a picture times a time course; the first changes its sign with a gate."""

    def __init__(self) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(3)
        self.picture = nn.Parameter(torch.zeros(2, SIZE, SIZE))
        self.course = nn.Parameter(torch.randn(2, HISTORY, generator=gen))
        with torch.no_grad():
            self.picture[0, 1:3, 2:5] = torch.rand(2, 3, generator=gen) + 0.5
            self.picture[1, 4:6, 0:2] = -torch.rand(2, 2, generator=gen) - 0.5

    def forward(self, x: Tensor) -> Tensor:
        drive = torch.einsum("nhyx,cyx,ch->nc", x, self.picture, self.course)
        gate = x[:, 0, 0, 0].detach().sign()
        return torch.stack((gate * drive[:, 0], 2 * drive[:, 1]), 1)


class Network(nn.Module):
    """Nonlinear: every sample has another gradient."""

    def __init__(self, cells: int = 3) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(HISTORY, 4, 3)
        self.read = nn.Linear(4 * (SIZE - 2) ** 2, cells)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softplus(self.read(self.conv(x).tanh().flatten(1)))


def products(fields: ReceptiveFields) -> Tensor:
    """[sample, cell, history, y, x], which signs of the parts leave alone."""
    return torch.einsum("sc,sch,scyx->schyx", fields.strength, fields.temporal, fields.spatial)


def assert_same(a: ReceptiveFields, b: ReceptiveFields) -> None:
    torch.testing.assert_close(products(a), products(b))
    torch.testing.assert_close(a.separability, b.separability)
    assert torch.equal(a.corners, b.corners)


# --- what is found ------------------------------------------------------------------------


def test_a_separable_field_is_recovered_exactly() -> None:
    model, x = Separable().eval(), clips()
    fields = receptive_fields(model, as_inputs(x), crop=None)
    gate = x[:, 0, 0, 0].sign()
    truth = torch.einsum("ch,cyx->chyx", model.course, model.picture).detach()
    torch.testing.assert_close(products(fields)[:, 0], gate[:, None, None, None] * truth[0])
    torch.testing.assert_close(products(fields)[:, 1], (2 * truth[1]).expand(9, -1, -1, -1))
    torch.testing.assert_close(fields.separability, torch.ones(9, 2))
    largest = model.course.detach().abs().max(1)
    flip = model.course.detach().gather(1, largest.indices[:, None])[:, 0].sign()
    assert torch.equal(fields.polarity, torch.stack((gate * flip[0], -flip[1].expand(9)), 1))
    assert bool((fields.temporal.amax(2) == fields.temporal.abs().amax(2)).all())


def test_window_finds_the_cell() -> None:
    model = Separable().eval()
    whole = receptive_fields(model, as_inputs(clips()), crop=None)
    cropped = receptive_fields(model, as_inputs(clips()), crop=3)
    assert cropped.spatial.shape == (9, 2, 3, 3)
    assert whole.corners.tolist() == [[0, 0], [0, 0]]
    # Both patches are inside their windows, so nothing of the picture is lost.
    torch.testing.assert_close(cropped.spatial.square().sum((2, 3)), torch.ones(9, 2))
    for cell, corner in enumerate(cropped.corners.tolist()):
        y, x = (slice(at, at + 3) for at in corner)
        torch.testing.assert_close(cropped.spatial[:, cell], whole.spatial[:, cell, y, x])


def test_a_small_picture_is_not_cropped() -> None:
    fields = receptive_fields(Network().eval(), as_inputs(clips(2)))
    assert fields.spatial.shape == (2, 3, SIZE, SIZE)


def test_batches_do_not_matter() -> None:
    model, inputs = Network().eval(), as_inputs(clips())
    once = receptive_fields(model, inputs, crop=4)
    assert_same(once, receptive_fields(model, inputs, crop=4, batch_size=2))


def test_cells_and_rows_select_and_permute() -> None:
    model, inputs = Network().eval(), as_inputs(clips())
    every = receptive_fields(model, inputs, crop=4)
    some = receptive_fields(
        model, inputs, crop=4, cells=(2, 0), rows=[5, 1, 7, 0, 2, 3, 4, 6, 8], batch_size=4
    )
    torch.testing.assert_close(
        products(some), products(every)[[5, 1, 7, 0, 2, 3, 4, 6, 8]][:, [2, 0]]
    )
    assert some.rows.tolist() == [5, 1, 7, 0, 2, 3, 4, 6, 8]
    assert some.cells.tolist() == [2, 0]
    assert torch.equal(some.corners, every.corners[[2, 0]])
    assert_same(some.select(every.rows < 3), some.select([0, 1, 2]))
    assert some.select([1]).rows.tolist() == [1]
    assert len(some.select([1, 2])) == 2


def test_the_part_and_the_rest_add_up() -> None:
    field = torch.randn(5, HISTORY, SIZE, SIZE)
    both = separate(field)
    product = torch.einsum("s,sh,syx->shyx", both.strength, both.temporal, both.spatial)
    rest = (field - product).square().sum((1, 2, 3))
    share = 1 - rest / field.square().sum((1, 2, 3))
    torch.testing.assert_close(both.separability, share)


def test_a_cell_that_hears_nothing_has_no_field() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            loud = x.mean((1, 2, 3))
            return torch.stack((loud, loud * 0), 1)

    fields = receptive_fields(Silent().eval(), as_inputs(clips(3)), crop=4)
    assert fields.strength[:, 1].tolist() == [0, 0, 0]
    assert bool((fields.spatial[:, 1] == 0).all())
    assert bool((fields.temporal[:, 1] == 0).all())
    assert bool(fields.separability[:, 1].isnan().all())
    assert fields.polarity.tolist() == [[1, 0]] * 3
    assert fields.corners[1].tolist() == [1, 1]


def test_a_rate_that_ignores_the_clip_beside_one_that_does_not() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack((x.sum((1, 2, 3)), self.rate.expand(len(x))), 1)

    model = Fixed().eval()
    fields = receptive_fields(model, as_inputs(clips(2)))
    assert fields.strength[:, 1].tolist() == [0, 0]
    assert model.rate.requires_grad  # as it was
    assert model.rate.grad is None


def test_aligned_signs_follow_the_main_course() -> None:
    # Two lobes, of which now one and now the other is the larger: the rule flips the picture.
    courses = torch.tensor([[1.0, -0.9], [0.9, -1.0], [1.0, -0.95]])
    field = torch.einsum("sh,yx->shyx", courses, torch.tensor([[2.0, 1.0]]))
    both = separate(field[:, None])
    fields = ReceptiveFields(
        spatial=both.spatial, temporal=both.temporal, strength=both.strength,
        separability=both.separability, rows=torch.arange(3), cells=torch.tensor([0]),
        corners=torch.zeros(1, 2, dtype=torch.int64),
    )  # fmt: skip
    assert fields.polarity[:, 0].tolist() == [1, -1, 1]
    aligned = fields.aligned()
    assert len(set(aligned.polarity[:, 0].tolist())) == 1
    torch.testing.assert_close(products(aligned), products(fields))


def test_the_main_course_is_that_of_strong_fields() -> None:
    """One strong field with course A, many weak ones with B; C agrees with B, not with A."""
    courses = torch.tensor([[10.0, 0.0], *[[0.0, 1.0]] * 9, [-0.6, 0.8]])
    both = separate(torch.einsum("sh,yx->shyx", courses, torch.ones(1, 2))[:, None])
    assert both.temporal[-1, 0].tolist() == pytest.approx([-0.6, 0.8])
    fields = ReceptiveFields(
        spatial=both.spatial, temporal=both.temporal, strength=both.strength,
        separability=both.separability, rows=torch.arange(11), cells=torch.tensor([0]),
        corners=torch.zeros(1, 2, dtype=torch.int64),
    )  # fmt: skip
    assert fields.aligned().temporal[-1, 0].tolist() == pytest.approx([0.6, -0.8])


# --- what is refused ----------------------------------------------------------------------


class Broken(nn.Module):
    def __init__(self, rates: object) -> None:
        super().__init__()
        self.rates = rates

    def forward(self, x: Tensor) -> Tensor:
        return self.rates(x)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("rates", "error", "message"),
    [
        (lambda x: x.sum((1, 2, 3)), ModelError, r"shape \[sample, cell\].* gave \(2,\), with a"),
        (lambda x: x.detach().sum((2, 3)), ModelError, r"gave \(2, 4\), without a gradient"),
        (lambda x: x.sum((2, 3)) / 0, DataError, "a rate is NaN or infinite for 2 .*'0', '1'"),
        (lambda x: (x - x).sum((2, 3)).sqrt(), DataError, "gradient of cell 0 is NaN or infinite"),
    ],
)
def test_models_that_cannot_be_used(rates: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        receptive_fields(Broken(rates).eval(), as_inputs(clips(2)))


def test_bad_input() -> None:
    model, inputs = Network().eval(), as_inputs(clips(3))
    with pytest.raises(OptionError, match=r"cells from 0 to 2, at least one; got \[3\]"):
        receptive_fields(model, inputs, cells=[0, 3])
    with pytest.raises(OptionError, match="rows from 0 to 2, at least one; got none"):
        receptive_fields(model, inputs, rows=[])
    with pytest.raises(OptionError, match="batch_size must be at least 1; got 0"):
        receptive_fields(model, inputs, batch_size=0)
    with pytest.raises(OptionError, match="crop must be at least 1; got 0"):
        receptive_fields(model, inputs, crop=0)
    with pytest.raises(DataError, match=r"clips of shape \[history, y, x\]; .* \(6, 6\)"):
        receptive_fields(model, as_inputs(clips(3)[:, 0]))
    with pytest.raises(ModelError, match="is in training mode"):
        receptive_fields(Network(), inputs)
    broken = clips(3)
    broken[1, 0, 0, 0] = math.nan
    with pytest.raises(DataError, match=r"'1'.* not finite"):
        receptive_fields(model, as_inputs(broken))
