"""Targets of classifiers give the number they name, freeze what they promise, refuse the rest."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from condec.attribution import ActGrad, contribute
from condec.attribution.targets import (
    Contrast,
    Entropy,
    Label,
    Logit,
    Margin,
    Predicted,
    Target,
    TopK,
    predictions,
    target_from_dict,
)
from condec.basis.errors import DataError, ModelError, OptionError

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
        (Contrast(), [1.0, 0.5]),
        (Contrast(frozen=True), [1.0, 0.5]),
        (Margin(), [0.0, -1.25]),
        (Margin(against="largest"), [-1.0, -1.5]),
        (
            Margin(against="logsumexp"),
            pytest.approx([2 - math.log(math.e + math.e**3), -1 - math.log(math.e**0.5 + 1)]),
        ),
    ],
)
def test_values(target: Target, expected: list[float]) -> None:
    frozen = target.freeze(OUTPUT, LABELS)
    assert target.value(OUTPUT, frozen).tolist() == expected
    assert target_from_dict(json.loads(json.dumps(target.to_dict()))) == target


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


@pytest.mark.usefixtures("unchecked")
def test_a_pair_may_be_numbers_of_numpy_and_nothing_between() -> None:
    assert Contrast(pair=(np.int64(2), torch.tensor(0))).pair == (2, 0)
    with pytest.raises(OptionError, match=r"two numbers of labels, or two names; got \(1.5, 2\)"):
        Contrast(pair=(1.5, 2))  # type: ignore[arg-type]


def test_contrast_keeps_its_pair_if_frozen() -> None:
    frozen = Contrast(frozen=True).freeze(OUTPUT, None)
    assert frozen is not None
    assert frozen.tolist() == [[1, 2], [0, 2]]
    later = torch.tensor([[9.0, 1.0, 4.0], [0.0, 7.0, 2.0]])
    assert Contrast(frozen=True).value(later, frozen).tolist() == [-3.0, -2.0]
    assert Contrast().freeze(OUTPUT, None) is None
    assert Contrast().value(later, None).tolist() == [5.0, 5.0]


def test_margin_keeps_its_label_and_not_its_rival() -> None:
    frozen = Margin().freeze(OUTPUT, LABELS)
    later = torch.tensor([[9.0, 1.0, 4.0], [0.0, 7.0, 2.0]])
    assert Margin(against="largest").value(later, frozen).tolist() == [-5.0, 5.0]


def test_margin_against_logsumexp_is_the_log_odds() -> None:
    output = torch.randn(6, 5, dtype=torch.float64) * 3
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    p = output.softmax(1)[range(6), labels]
    value = Margin(against="logsumexp").value(output, labels)
    assert torch.allclose(value, (p / (1 - p)).log(), atol=1e-12)


def test_contrast_and_margin_do_not_see_what_all_logits_share() -> None:
    moved = OUTPUT.double() + 17
    for target in (Contrast(), Margin(), Margin(against="largest"), Margin(against="logsumexp")):
        frozen = target.freeze(OUTPUT, LABELS)
        same = target.value(OUTPUT.double(), frozen)
        assert torch.allclose(target.value(moved, frozen), same, atol=1e-12)


def test_logit_of_one_token() -> None:
    output = torch.arange(24.0).view(2, 3, 4)
    assert Logit((-1, 2)).value(output, None).tolist() == [10.0, 22.0]
    assert Logit((0, 3)).value(output, None).tolist() == [3.0, 15.0]
    share = Logit((-1, 2), probability=True).value(output, None)
    assert torch.allclose(share, output[:, -1].softmax(1)[:, 2])
    assert Logit(0).value(torch.tensor([3.0, 4.0]), None).tolist() == [3.0, 4.0]


class Segmentation(nn.Module):
    """[sample, class, y, x], or with the classes last; 3 classes, 4 x 5 places."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.stem, self.head, self.last = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 3, 1), last

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.stem(x).relu())
        return y.permute(0, 2, 3, 1) if self.last else y


@pytest.mark.parametrize(
    ("last", "target"),
    [
        (False, Logit((2, 1, -1), probability=True)),
        (False, Logit((2, 1, -1), probability=True, axis=1)),
        (True, Logit((1, -1, 2), probability=True)),
        (True, Logit((1, -1, 2), probability=True, axis=3)),
    ],
)
def test_probability_of_a_class_at_a_place(last: bool, target: Logit) -> None:
    torch.manual_seed(0)
    model, x = Segmentation(last=last).double().eval(), torch.randn(2, 1, 4, 5).double()
    wanted = []
    for sample in x:
        places = model.head(model.stem(sample[None]).relu()).detach()
        logits = [float(places[0, c, 1, -1]) for c in range(3)]
        wanted.append(math.exp(logits[2]) / sum(math.exp(logit) for logit in logits))
    wanted = torch.tensor(wanted, dtype=torch.float64)
    batch = contribute(model, x, "stem", target=target, method=ActGrad())
    torch.testing.assert_close(batch.target, wanted, rtol=1e-12, atol=0)
    assert target.to_dict() == target_from_dict(target.to_dict()).to_dict()


def test_an_axis_of_labels() -> None:
    output = torch.arange(48.0).view(2, 2, 3, 4)
    assert Logit((1, 2, -1)).value(output, None).tolist() == [23.0, 47.0]
    assert "axis" not in Logit((1, 2, 3)).to_dict()
    assert Logit((1, -2), axis=1) != Logit((1, 2))
    with pytest.raises(OptionError, match="index must be 0 or more; got -2"):
        Logit((-2, 1), axis=1)
    for wrong in (0, 3):
        with pytest.raises(OptionError, match="axis must be from 1 to 2"):
            Logit((1, 2), axis=wrong)


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
        (
            lambda: Logit(2).value(torch.ones(2, 3, 4), None),
            OptionError,
            r"Logit: 1 indices for an output of shape \(2, 3, 4\); give one for each axis",
        ),
        (
            lambda: Logit((5, 1)).value(torch.ones(2, 3, 4), None),
            OptionError,
            "index 5 is out of range; the output has 3 entries on axis 1, 0 to 2",
        ),
        (lambda: Logit((0, -1)), OptionError, "index must be 0 or more; got -1"),
        (lambda: Logit(()), OptionError, "Logit: index is empty"),
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
        (
            lambda: Label().freeze(OUTPUT, torch.tensor([1.7, 0.0])),
            DataError,
            r"Label: expected integer labels of shape \[sample\]; got torch.float32",
        ),
        (lambda: Label().freeze(OUTPUT, torch.tensor([1])), DataError, "one label for each of 2"),
        (lambda: Label().value(OUTPUT, None), ModelError, "must be frozen"),
        (
            lambda: TopK().value(torch.ones(2, 3, 4), None),
            ModelError,
            r"shape \[sample, label\]; the model gave \(2, 3, 4\)",
        ),
        (
            lambda: Entropy().value(torch.ones(2), None),
            ModelError,
            r"the model gave \(2,\)\. Sum, Logit with one index an axis, and a function",
        ),
        (
            lambda: TopK(probability=True).value(torch.ones(2, 1), None),
            ModelError,
            r"at least 2 labels; the model gave 1 \(the softmax of a single output is always 1\)",
        ),
        (lambda: Contrast().value(torch.ones(2, 1), None), ModelError, "at least 2 labels"),
        (
            lambda: Contrast(frozen=True).freeze(torch.ones(2, 1), None),
            ModelError,
            "at least 2 labels; the model gave 1",
        ),
        (lambda: Contrast(frozen=True).value(OUTPUT, None), ModelError, "must be frozen"),
        (lambda: Margin().value(torch.ones(2, 1), LABELS), ModelError, "at least 2 labels"),
        (lambda: Margin().freeze(OUTPUT, None), DataError, "Margin: this target needs the label"),
        (lambda: Margin().value(OUTPUT, None), ModelError, "must be frozen"),
        (
            lambda: Margin(against="median"),
            OptionError,
            "against must be one of mean, largest, logsumexp, all; got 'median'",
        ),
        (
            lambda: Margin(against="logsumexp", probability=True),
            OptionError,
            "against='logsumexp' is the log-odds already",
        ),
        (lambda: target_from_dict({"name": "Topk"}), OptionError, "expected one of TopK, Logit"),
        (lambda: target_from_dict({"name": "TopK", "kk": 1}), OptionError, "target TopK: .*kk"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_requests_are_explained(call, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        call()


def test_predictions_of_outputs_that_are_no_classes() -> None:
    assert predictions(OUTPUT).tolist() == [1, 0]
    assert predictions(torch.ones(2, 1)).tolist() == [-1, -1]
    assert predictions(torch.ones(2, 3, 4)).tolist() == [-1, -1]
