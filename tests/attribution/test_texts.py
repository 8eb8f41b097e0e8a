"""Texts of methods, baselines and targets: there and back, and options that have none."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from condec.attribution import (
    ActGrad,
    Activation,
    ActNormGrad,
    Baseline,
    Blur,
    Constant,
    GradCAM,
    Gradient,
    IntegratedGradients,
    Mean,
    Method,
    Samples,
    SmoothGrad,
    UnitAblation,
    Zeros,
    ZeroTokens,
    texts,
)
from condec.attribution.targets import (
    TARGETS,
    Contrast,
    Custom,
    Entropy,
    Label,
    Logit,
    Margin,
    Predicted,
    Sum,
    Surprisal,
    Target,
    TopK,
)
from condec.basis.errors import OptionError

BASELINES = {
    "zeros": Zeros(),
    "zero_tokens": ZeroTokens(),
    "constant:0.5": Constant(0.5),
    "constant:-2.1,0,1e-05": Constant((-2.1, 0.0, 1e-5)),
    "blur:3": Blur(3.0),
    "mean": Mean(),
    "mean:12": Mean(n_samples=12),
    "samples:3": Samples(n_samples=3),
}
METHODS = {
    "ig": IntegratedGradients(steps=10),
    "ig:25": IntegratedGradients(steps=25),
    "ig:auto": IntegratedGradients(steps="auto"),
    "ig:10:layer": IntegratedGradients(path="layer"),
    "ig:auto:layer": IntegratedGradients(steps="auto", path="layer"),
    "ig:10:uniform": IntegratedGradients(spacing="uniform"),
    "ig:fitted": IntegratedGradients(spacing="fitted"),
    "ig:8:layer:fitted@mean": IntegratedGradients(
        steps=8, path="layer", spacing="fitted", baseline=Mean()
    ),
    "ig:auto:power:2.5": IntegratedGradients(steps="auto", spacing="power:2.5"),
    "ig:10@blur:3": IntegratedGradients(baseline=Blur(3.0)),
    "ig@samples:8": IntegratedGradients(baseline=Samples(n_samples=8)),
    "actgrad": ActGrad(),
    "actnormgrad": ActNormGrad(),
    "activation": Activation(),
    "gradient": Gradient(),
    "gradcam": GradCAM(),
    "smoothgrad": SmoothGrad(),
    "smoothgrad:4": SmoothGrad(n_samples=4),
    "smoothgrad:4(ig:5@mean)": SmoothGrad(
        n_samples=4, inner=IntegratedGradients(steps=5, baseline=Mean())
    ),
    "smoothgrad(smoothgrad:2(gradient))": SmoothGrad(
        inner=SmoothGrad(n_samples=2, inner=Gradient())
    ),
    "unit_ablation": UnitAblation(),
    "unit_ablation:resample": UnitAblation(replacement="resample"),
    "unit_ablation:baseline": UnitAblation(replacement="baseline"),
}


@pytest.mark.parametrize("text", BASELINES)
def test_baselines(text: str) -> None:
    assert texts.BASELINES.parse(text) == BASELINES[text]
    assert texts.BASELINES.parse(texts.BASELINES.text(BASELINES[text])) == BASELINES[text]


@pytest.mark.parametrize("text", METHODS)
def test_methods(text: str) -> None:
    assert texts.METHODS.parse(text) == METHODS[text]
    assert texts.METHODS.parse(texts.METHODS.text(METHODS[text])) == METHODS[text]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_numbers_come_back_exactly(steps: int, value: float, sigma: float) -> None:
    for baseline in (Constant(value), Constant((value, sigma)), Blur(sigma)):
        method = IntegratedGradients(steps=steps, baseline=baseline)
        assert texts.METHODS.parse(texts.METHODS.text(method)) == method


@pytest.mark.parametrize(
    "text",
    ["ig:", "ig:ten", "IG:10", "grad", "", "ig:10:softmax", "ig:layer:10", "actgrad:3",
     "smoothgrad:2(", "unit_ablation:median"],
)  # fmt: skip
def test_methods_that_do_not_exist(text: str) -> None:
    with pytest.raises(OptionError, match=r"expected ig\[:STEPS\|:auto\]\[:layer\]"):
        texts.METHODS.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ig:10@", "baseline '': expected zeros"),
        ("ig:10@blurred", "baseline 'blurred': expected zeros, zero_tokens, mean_token, constant"),
        ("ig@constant:", "baseline 'constant:'"),
        ("ig:10@blur:0", "sigma must be positive"),
        ("ig:0", "steps must be at least 1"),
        ("smoothgrad:0", "n_samples must be at least 1"),
        ("smoothgrad(best)", "method 'best'"),
    ],
)
def test_what_is_out_of_range(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        texts.METHODS.parse(text)


@pytest.mark.parametrize(
    "method",
    [
        IntegratedGradients(steps="auto", tolerance=1e-3),
        IntegratedGradients(baseline=Mean(values=torch.ones(3))),
        SmoothGrad(noise=0.2),
        UnitAblation(seed=1),
    ],
)
def test_options_that_no_text_says_are_refused(method: Method) -> None:
    with pytest.raises(OptionError, match="no text says all of its options"):
        texts.METHODS.text(method)


def test_classes_of_the_user_s_own_have_no_text() -> None:
    class Mine(Baseline):
        def make(self, inputs: torch.Tensor, draw: int = 0) -> torch.Tensor:
            return inputs[:1]

    with pytest.raises(OptionError, match="baseline Mine: no text says"):
        texts.METHODS.text(IntegratedGradients(baseline=Mine()))


# --- targets ------------------------------------------------------------------------------

targets = st.one_of(
    st.builds(TopK, k=st.integers(1, 1000), probability=st.booleans()),
    st.builds(Label, probability=st.booleans()),
    st.builds(Predicted, probability=st.booleans()),
    st.builds(Contrast, frozen=st.booleans(), probability=st.booleans()),
    st.builds(Margin, against=st.sampled_from(["mean", "largest"]), probability=st.booleans()),
    # Made here and not by hypothesis: checks of the items of a tuple draw random numbers.
    st.sampled_from(
        [
            Entropy(),
            Margin(against="logsumexp"),
            Sum(),
            Sum((3,)),
            Sum((9, 0), probability=True),
            Logit(0),
            Logit(21_000, probability=True),
            Logit((-1, 5)),
            Logit((2, -3, 0), probability=True),
        ]
    ),
)


@settings(max_examples=50, deadline=None)
@given(targets)
def test_every_target_has_a_text(target: Target) -> None:
    assert TARGETS.parse(TARGETS.text(target)) == target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("margin", Margin(against="mean")),
        ("margin:logsumexp", Margin(against="logsumexp")),
        ("contrast:frozen:softmax", Contrast(frozen=True, probability=True)),
        ("contrast:3:5", Contrast(pair=(3, 5))),
        ("contrast: he: she:softmax", Contrast(pair=(" he", " she"), probability=True)),
        ("margin:all", Margin(against="all")),
        ("entropy", Entropy()),
        ("surprisal", Surprisal()),
        ("surprisal:0.25", Surprisal(shrinkage=0.25)),
        ("surprisal:1e-05", Surprisal(shrinkage=1e-5)),
        ("sum:3,5", Sum((3, 5))),
        ("logit:-1,262", Logit((-1, 262))),
    ],
)
def test_texts_of_targets(text: str, target: Target) -> None:
    assert TARGETS.parse(text) == target
    assert TARGETS.parse(TARGETS.text(target)) == target


def test_targets_without_a_text() -> None:
    fitted = Surprisal(torch.zeros(2), torch.eye(2))
    some = Surprisal(indices=(0, 2))
    for target in (fitted, some, Custom(lambda output: output[:, 0])):
        with pytest.raises(OptionError, match=r"no text says all of its options, so a run\.toml"):
            TARGETS.text(target)


@pytest.mark.parametrize(
    "text",
    ["top", "topk", "logit", "logit:-1", "Label", "", "top1:prob", "entropy:softmax", "sum:",
     "margin:best",
     "surprisal:", "surprisal:x", "custom", "logit:1,-2", "contrast:softmax:x"],
)  # fmt: skip
def test_targets_that_do_not_exist(text: str) -> None:
    with pytest.raises(OptionError, match=rf"target '{text}': expected topK\[:softmax\], logit"):
        TARGETS.parse(text)


def test_names_of_a_pair_are_found_among_the_labels() -> None:
    pair = Contrast(pair=(" he", 3))
    assert pair.numbered(lambda: ("x", " he", " she")) == Contrast(pair=(1, 3))
    assert Contrast(pair=(0, 1)).numbered(lambda: pytest.fail("asked in vain")).pair == (0, 1)
    with pytest.raises(OptionError, match=r"' he' is the name of 0 of the model's 2 labels.*\['he"):
        pair.numbered(lambda: ("he", "she"))
    with pytest.raises(OptionError, match="of 2 of the model's 2 labels"):
        pair.numbered(lambda: (" he", " he"))
    with pytest.raises(OptionError, match=r"of the model.s 0 labels.*Give the number"):
        pair.numbered(lambda: None)
    with pytest.raises(OptionError, match=r"are names; give numbers"):
        pair.value(torch.zeros(1, 4), None)
    with pytest.raises(OptionError, match="the output has 4 labels, 0 to 3"):
        Contrast(pair=(0, 4)).value(torch.zeros(1, 4), None)
    assert Contrast().to_dict() == {"name": "Contrast", "frozen": False, "probability": False}


def test_a_text_of_options_that_contradict_each_other_says_so() -> None:
    with pytest.raises(OptionError, match="against='logsumexp' is the log-odds already"):
        TARGETS.parse("margin:logsumexp:softmax")
    with pytest.raises(OptionError, match="against='all' is the log-probability already"):
        TARGETS.parse("margin:all:softmax")
    with pytest.raises(OptionError, match=r"pair must be two different labels, and not frozen"):
        TARGETS.parse("contrast:frozen:3:5")
    with pytest.raises(OptionError, match="all probabilities add up to 1"):
        TARGETS.parse("sum:softmax")
