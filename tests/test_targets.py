"""Targets give the number they name, freeze what they promise, and refuse bad requests."""

import pytest
import torch

from condec.errors import DataError, ModelError, OptionError
from condec.targets import (
    Label,
    Logit,
    Predicted,
    Target,
    TopK,
    predictions,
    target_from_dict,
)

OUTPUT = torch.tensor([[1.0, 3.0, 2.0], [0.5, -1.0, 0.0]])
LABELS = torch.tensor([2, 1])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (TopK(), [3.0, 0.5]),
        (TopK(k=2), [5.0, 0.5]),
        (Logit(0), [1.0, 0.5]),
        (Label(), [2.0, -1.0]),
        (Predicted(), [3.0, 0.5]),
    ],
)
def test_values(target: Target, expected: list[float]) -> None:
    frozen = target.freeze(OUTPUT, LABELS)
    assert target.value(OUTPUT, frozen).tolist() == expected
    assert target_from_dict(target.to_dict()) == target


@pytest.mark.parametrize("make", [TopK, lambda **o: Logit(1, **o), Label, Predicted])
def test_probability_is_softmax(make) -> None:  # type: ignore[no-untyped-def]
    logit, probability = make(), make(probability=True)
    frozen = logit.freeze(OUTPUT, LABELS)
    share = OUTPUT.exp() / OUTPUT.exp().sum(1, keepdim=True)
    # Softmax keeps the order, so each target picks the same entry of the shares.
    picked = logit.value(OUTPUT, frozen)[:, None] == OUTPUT
    assert torch.allclose(probability.value(OUTPUT, frozen), share[picked])
    assert target_from_dict(probability.to_dict()) == probability


def test_predicted_keeps_its_class_and_top1_does_not() -> None:
    frozen = Predicted().freeze(OUTPUT, None)
    later = OUTPUT.flip(1)
    assert Predicted().value(later, frozen).tolist() == [3.0, 0.0]
    assert TopK().value(later, None).tolist() == [3.0, 0.5]


def test_half_precision_is_summed_in_float32() -> None:
    assert TopK(k=2).value(OUTPUT.half(), None).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TopK(k=0), OptionError, "TopK: k must be at least 1; got 0"),
        (lambda: TopK(k=4).value(OUTPUT, None), OptionError, "k=4, but the output has 3 labels"),
        (lambda: Logit(-1), OptionError, "index must be 0 or more; got -1"),
        (
            lambda: Logit(285).value(OUTPUT, None),
            OptionError,
            "index 285 is out of range; the output has 3 labels, 0 to 2",
        ),
        (lambda: Label().freeze(OUTPUT, None), DataError, "needs the label of every sample"),
        (
            lambda: Label().freeze(OUTPUT, torch.tensor([1, 3])),
            DataError,
            "the first is 3, at sample 1",
        ),
        (
            lambda: Label().freeze(OUTPUT, torch.tensor([1, -1])),
            DataError,
            "the first is -1, at sample 1",
        ),
        (lambda: Label().freeze(OUTPUT, torch.tensor([1])), DataError, "one label for each of 2"),
        (lambda: Label().value(OUTPUT, None), ModelError, "must be frozen"),
        (
            lambda: TopK().value(torch.ones(2, 3, 4), None),
            ModelError,
            r"shape \[sample, label\]; the model gave \(2, 3, 4\)",
        ),
        (lambda: target_from_dict({"name": "Topk"}), OptionError, "expected one of TopK, Logit"),
        (lambda: target_from_dict({"name": "TopK", "kk": 1}), OptionError, "target TopK: .*kk"),
    ],
)
def test_bad_requests_are_explained(call, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        call()


def test_predictions_of_outputs_that_are_no_classes() -> None:
    assert predictions(OUTPUT).tolist() == [1, 0]
    assert predictions(torch.ones(2, 1)).tolist() == [-1, -1]
    assert predictions(torch.ones(2, 3, 4)).tolist() == [-1, -1]
