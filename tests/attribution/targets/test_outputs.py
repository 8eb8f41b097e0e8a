"""Entropy, sum and surprisal: the number they name, and what they refuse."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from condec.attribution.targets import Entropy, Sum, Surprisal, Target, target_from_dict
from condec.basis.errors import DataError, ModelError, OptionError

OUTPUT = torch.tensor([[1.0, 3.0, 2.0], [0.5, -1.0, 0.0]])


def rates(n_samples: int = 60) -> Tensor:
    """Outputs of four cells, of quite different size, two of them correlated."""
    generator = torch.Generator().manual_seed(1)
    shared = torch.randn(n_samples, 1, dtype=torch.float64, generator=generator)
    own = torch.randn(n_samples, 4, dtype=torch.float64, generator=generator)
    scale = torch.tensor([1.0, 10.0, 0.01, 2.0], dtype=torch.float64)
    return (own + shared * torch.tensor([1.0, 2.0, 0.0, 0.0])) * scale + 5


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Sum(), [6.0, -0.5]),
        (Sum((0, 2)), [3.0, 0.5]),
        (Sum((1,), probability=True), (OUTPUT.softmax(1)[:, 1]).tolist()),
    ],
)
def test_sums(target: Target, expected: list[float]) -> None:
    assert target.freeze(OUTPUT, None) is None
    assert target.value(OUTPUT, None).tolist() == pytest.approx(expected)
    assert target_from_dict(json.loads(json.dumps(target.to_dict()))) == target


def test_sum_of_other_shapes() -> None:
    assert Sum().value(torch.tensor([3.0, 4.0]), None).tolist() == [3.0, 4.0]
    tokens = torch.arange(12.0).view(2, 2, 3)
    assert Sum().value(tokens, None).tolist() == [15.0, 51.0]
    assert Sum((2,)).value(tokens, None).tolist() == [7.0, 19.0]


def test_entropy_has_its_two_ends() -> None:
    even = Entropy().value(torch.zeros(1, 8), None)
    assert even.item() == pytest.approx(math.log(8))
    certain = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    value = Entropy().value(certain, None)
    value.sum().backward()
    assert value.item() == 0.0
    assert certain.grad is not None
    assert bool(certain.grad.isfinite().all())
    assert target_from_dict(Entropy().to_dict()) == Entropy()


def test_entropy_of_labels_that_are_masked_out() -> None:
    masked = torch.tensor([[0.3, 1.0, -torch.inf]], dtype=torch.float64, requires_grad=True)
    plain = masked.detach()[:, :2].requires_grad_()
    for output in (masked, plain):
        Entropy().value(output, None).sum().backward()
    assert torch.equal(Entropy().value(masked, None), Entropy().value(plain, None))
    assert masked.grad is not None
    assert plain.grad is not None
    assert torch.allclose(masked.grad[:, :2], plain.grad)
    assert masked.grad[0, 2] == 0


def test_surprisal_without_shrinkage_is_that_of_the_paper() -> None:
    y = rates().numpy()
    inverse = np.linalg.inv(np.cov(y.T))
    expected = [0.5 * (row - y.mean(0)) @ inverse @ (row - y.mean(0)) for row in y]
    target = Surprisal.fit(y, shrinkage=0.0)
    assert target.shrinkage == 0
    assert target.value(torch.tensor(y), None).numpy() == pytest.approx(np.array(expected))
    # The squared distances of the fitted rows add up to (n - 1) p.
    assert np.sum(expected) == pytest.approx(0.5 * 59 * 4)


def test_surprisal_does_not_depend_on_units_without_shrinkage() -> None:
    y = rates()
    scale = torch.tensor([1e-6, 1.0, 1e6, -3.0], dtype=torch.float64)
    one = Surprisal.fit(y, shrinkage=0.0).value(y, None)
    other = Surprisal.fit(y * scale, shrinkage=0.0).value(y * scale, None)
    assert torch.allclose(one, other, rtol=1e-6)


def test_shrinkage_of_ledoit_and_wolf() -> None:
    from sklearn.covariance import LedoitWolf

    few = torch.randn(12, 9, dtype=torch.float64)
    target = Surprisal.fit(few)
    assert target.shrinkage == pytest.approx(LedoitWolf().fit(few.numpy()).shrinkage_)
    assert 0 < target.shrinkage < 1
    full = Surprisal.fit(few, shrinkage=1.0)
    assert torch.allclose(full.precision, torch.eye(9).double() / few.var(0).mean())


def test_surprisal_with_fewer_samples_than_outputs_needs_shrinkage() -> None:
    few = torch.randn(5, 9, dtype=torch.float64)
    assert bool(Surprisal.fit(few).value(few, None).isfinite().all())
    with pytest.raises(DataError, match=r"5 samples of 9 outputs: .* or shrinkage='auto'"):
        Surprisal.fit(few, shrinkage=0.0)


def test_surprisal_of_some_outputs() -> None:
    y = rates()
    some = Surprisal.fit(y, indices=[3, 0], shrinkage=0.0)
    alone = Surprisal.fit(y[:, [3, 0]], shrinkage=0.0)
    assert torch.allclose(some.value(y, None), alone.value(y[:, [3, 0]], None))


@pytest.mark.parametrize("indices", [None, (3, 0)])
def test_surprisal_comes_back_exactly(indices: tuple[int, ...] | None) -> None:
    target = Surprisal.fit(rates(), indices=indices)
    again = target_from_dict(json.loads(json.dumps(target.to_dict())))
    assert isinstance(again, Surprisal)
    assert again == target
    assert hash(again) == hash(target)
    assert torch.equal(again.precision, target.precision)
    assert torch.equal(again.mean, target.mean)
    other = Surprisal.fit(rates(50))
    assert other != target
    assert other != "Surprisal"


def test_surprisal_keeps_the_type_of_the_output() -> None:
    target = Surprisal.fit(rates())
    for given, expected in (
        (torch.float64, torch.float64), (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ):  # fmt: skip
        assert target.value(torch.ones(2, 4, dtype=given), None).dtype == expected


def with_column(values: Tensor) -> Tensor:
    y = rates()
    return torch.cat((y, values.to(y).expand(len(y))[:, None]), 1)


def test_an_output_that_differs_in_its_last_digit_is_constant() -> None:
    y = with_column(torch.tensor(0.7)).float()
    y[::3, 4] = torch.nextafter(y[0, 4], torch.tensor(1.0))
    with pytest.raises(DataError, match=r"1 of 5 outputs are the same .*: \[4\]"):
        Surprisal.fit(y)
    assert Surprisal.fit(y.double()).is_fitted  # there, it is no rounding


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Sum(()), OptionError, "different numbers from 0 on, at least one"),
        (lambda: Sum((1, 1)), OptionError, r"different numbers from 0 on.*got \(1, 1\)"),
        (lambda: Sum((-1,)), OptionError, "different numbers from 0 on"),
        (lambda: Sum((3,)).value(OUTPUT, None), OptionError, "index 3 is out of range; .*0 to 2"),
        (lambda: Sum(probability=True), OptionError, "all probabilities add up to 1"),
        (lambda: Entropy().value(torch.ones(2, 1), None), ModelError, "at least 2 labels"),
        (
            lambda: Surprisal.fit(with_column(torch.tensor(0.0))),
            DataError,
            r"1 of 5 outputs are the same for all 60 samples: \[4\]; .*leave them out with",
        ),
        (
            lambda: Surprisal.fit(with_column(torch.tensor(0.1)), indices=[4, 0]),
            DataError,
            r"1 of 2 outputs .*: \[4\]",
        ),
        (
            lambda: Surprisal.fit(with_column(rates()[:, 1]), shrinkage=0.0),
            DataError,
            r"outputs \[1, 4\] depend on one another, .* or give shrinkage='auto'",
        ),
        (
            lambda: Surprisal.fit(with_column(torch.tensor(torch.nan))),
            DataError,
            r"60 rows hold NaN or infinity; the first are \[0, 1, 2, 3, 4\]",
        ),
        (lambda: Surprisal.fit(torch.ones(3)), DataError, r"shape \[sample, output\]"),
        (lambda: Surprisal.fit(torch.ones(1, 3)), DataError, "two samples or more"),
        (lambda: Surprisal.fit(rates(), shrinkage=1.5), OptionError, "'auto' or between 0 and 1"),
        (lambda: Surprisal.fit(rates(), shrinkage="lw"), OptionError, "between 0 and 1; got 'lw'"),
        (lambda: Surprisal.fit(rates(), indices=[4]), OptionError, "index 4 is out of range"),
        (
            lambda: Surprisal.fit(rates()).value(torch.ones(2, 3), None),
            OptionError,
            "fitted to 4 outputs; the model gives 3",
        ),
        (
            lambda: Surprisal.fit(rates()).value(torch.ones(2, 3, 4), None),
            ModelError,
            r"shape \[sample, output\]; the model gave \(2, 3, 4\)",
        ),
        (
            lambda: Surprisal(torch.ones(3), torch.eye(2)),
            OptionError,
            r"mean \[output\] and a precision \[output, output\]; got shapes \(3,\) and \(2, 2\)",
        ),
        (
            lambda: Surprisal(torch.ones(2), torch.full((2, 2), torch.inf)),
            OptionError,
            "precision holds NaN or infinity",
        ),
        (
            lambda: Surprisal(torch.ones(2), torch.eye(2), indices=(1,)),
            OptionError,
            "1 indices for a mean of 2 outputs",
        ),
    ],
)
def test_bad_requests_are_explained(call, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        call()


def test_surprisal_may_be_fitted_later() -> None:
    asked = Surprisal(indices=(3, 0), shrinkage=0.25)
    assert not asked.is_fitted
    assert target_from_dict(json.loads(json.dumps(asked.to_dict()))) == asked
    assert hash(asked) == hash(Surprisal(indices=(3, 0), shrinkage=0.25))
    fitted = asked.fitted(rates())
    assert fitted == Surprisal.fit(rates(), indices=(3, 0), shrinkage=0.25)
    assert fitted.is_fitted
    assert fitted.fitted(rates() + 1) is fitted
    assert Entropy().fitted(rates()) == Entropy()
    with pytest.raises(OptionError, match=r"it is not fitted; take Surprisal\.fit\(outputs\)"):
        asked.value(rates(), None)
    with pytest.raises(OptionError, match="both mean and precision, or neither"):
        Surprisal(torch.ones(2))
