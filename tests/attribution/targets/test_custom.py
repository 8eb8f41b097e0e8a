"""Functions as targets: taken wherever a target is, checked, and told apart in stores."""

import enum
import functools
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from condec.attribution.contributions import contribute
from condec.attribution.targets import Custom, Logit, as_target, target_from_dict
from condec.attribution.targets.custom import code_digest
from condec.basis.errors import ModelError, OptionError, StoreError
from condec.explain import mode_map
from condec.store.collection import collect
from condec.testing.models import small_mlp, small_resnet

WEIGHT = 2.0


def weighted(output: Tensor, factor: float = 1.0) -> Tensor:
    return WEIGHT * factor * helper(output)


def helper(output: Tensor) -> Tensor:
    return output[:, 0]


class Probe:
    """A callable with a state."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def __call__(self, output: Tensor) -> Tensor:
        return output @ self.weights

    def method(self, output: Tensor) -> Tensor:
        return output @ self.weights


def scaled_by(value: object) -> Callable[[Tensor], Tensor]:
    return lambda output: output[:, 0] * torch.as_tensor(value).sum()


def test_a_function_is_taken_wherever_a_target_is(tmp_path: Path) -> None:
    model, images = small_resnet(), torch.randn(3, 1, 5, 5)
    ours, named = lambda output: output[:, 1], Logit(1)
    for first, second in (
        (contribute(model, images, "block1", target=ours)["block1"].contribution,
         contribute(model, images, "block1", target=named)["block1"].contribution),
        (mode_map(model, images, "block1", [0], ours).total,
         mode_map(model, images, "block1", [0], named).total),
        (collect(model, images, "block1", target=ours, out=tmp_path / "a.zarr",
                 progress=False).target,
         collect(model, images, "block1", target=named, out=tmp_path / "b.zarr",
                 progress=False).target),
    ):  # fmt: skip
        assert torch.equal(first, second)


def test_function_of_another_shape_of_output() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)  # [sample, token, label]

    batch = contribute(
        Tokens().eval(), torch.randn(3, 5, 2), "linear", target=lambda output: output[:, -1, 2]
    )
    assert batch.target.shape == (3,)
    assert batch.prediction.tolist() == [-1, -1, -1]


def test_a_store_is_not_gone_on_with_by_another_function(tmp_path: Path) -> None:
    data, out = torch.randn(4, 5), tmp_path / "a.zarr"

    def run(target: Callable[[Tensor], Tensor]) -> None:
        collect(small_mlp(), data, "1", target=target, out=out, progress=False)

    run(scaled_by(2.0))
    run(scaled_by(2.0))
    with pytest.raises(StoreError, match="target"):
        run(scaled_by(3.0))
    with pytest.raises(StoreError, match="target"):
        run(helper)


def test_plain_form_has_name_and_digest_and_no_way_back() -> None:
    target = Custom(helper)
    assert target.to_dict() == {"name": "Custom", "function": "helper", "code": code_digest(helper)}
    assert Custom(helper, "first logit").to_dict()["function"] == "first logit"
    assert Custom(functools.partial(weighted, factor=2.0)).label == "weighted"
    assert Custom(nn.Flatten(0)).label == "Flatten"
    with pytest.raises(OptionError, match=r"target Custom: .* 'helper', .* itself in Python"):
        target_from_dict(target.to_dict())


DIFFERENT = {
    "lambda 0": lambda output: output[:, 0],
    "lambda 1": lambda output: output[:, 1],
    "same lambda, longer": lambda output: output[:, 0] + 0,
    "function": weighted,
    "partial 2": functools.partial(weighted, factor=2.0),
    "partial 3": functools.partial(weighted, factor=3.0),
    "closure 1": scaled_by(1),
    "closure 1.0": scaled_by(1.0),
    "closure list": scaled_by([1, 2]),
    "closure tensor": scaled_by(torch.ones(2)),
    "closure tensor 2": scaled_by(torch.ones(3)),
    "closure array": scaled_by(np.ones(2)),
    "closure array 2": scaled_by(np.zeros(2)),
    "closure module": scaled_by(nn.Linear(2, 2)),
    "closure module 2": scaled_by(nn.Linear(2, 2)),
    "closure of a function": scaled_by(helper),
    "closure of another function": scaled_by(weighted),
    "closure mapping": scaled_by({"a": 1}),
    "closure mapping 2": scaled_by({"a": 2}),
    "closure set": scaled_by({1, 2}),
    "callable": Probe(torch.ones(3)),
    "callable 2": Probe(torch.zeros(3)),
    "method": Probe(torch.ones(3)).method,
    "method 2": Probe(torch.zeros(3)).method,
    "module": nn.Linear(3, 1),
    "built in": torch.numel,
}


def test_digests_tell_functions_apart() -> None:
    digests = {name: code_digest(function) for name, function in DIFFERENT.items()}
    assert len(set(digests.values())) == len(digests)
    assert {name: code_digest(function) for name, function in DIFFERENT.items()} == digests
    assert code_digest(Probe(torch.ones(3))) == digests["callable"]
    assert code_digest(scaled_by(1.0)) == digests["closure 1.0"]


def test_digest_sees_globals_and_helpers_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_digest(weighted)
    monkeypatch.setitem(weighted.__globals__, "WEIGHT", 3.0)
    changed = code_digest(weighted)
    monkeypatch.undo()
    assert changed != before
    monkeypatch.setitem(weighted.__globals__, "helper", lambda output: output[:, 1])
    assert code_digest(weighted) not in (before, changed)
    monkeypatch.undo()
    assert code_digest(weighted) == before


class Base:
    shift = 1.0
    table = (1.0, 2.0)

    def score(self, output: Tensor) -> Tensor:
        return WEIGHT * output[:, 0]


class Scorer(Base):
    """A callable that calls a method of its own."""

    power = 2

    def __init__(self) -> None:
        self.inner = Base()

    def __call__(self, output: Tensor) -> Tensor:
        return self.score(output) ** self.power + self.table[0] + self.half

    def method(self, output: Tensor) -> Tensor:
        return self.inner.score(output)

    def unused(self, output: Tensor) -> object:
        return UNKNOWN

    @property
    def half(self) -> float:
        return self.scaled(0.5)

    @staticmethod
    def scaled(value: float) -> float:
        return value


class Net(nn.Module):
    """A network whose function is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = 2.0

    def forward(self, output: Tensor) -> Tensor:
        return self.factor * output[:, 0]


class Color(enum.Enum):
    RED = 0


UNKNOWN = object()
CONFIG = types.ModuleType("config")
CONFIG.I, CONFIG.sub = 1, types.ModuleType("config.sub")  # type: ignore[attr-defined]
CONFIG.sub.J, CONFIG.sub.config, CONFIG.other = 2, CONFIG, object()  # type: ignore[attr-defined]


def other_score(self: object, output: Tensor) -> Tensor:
    return output[:, 2]


def of_module(output: Tensor) -> Tensor:
    return output[:, CONFIG.I] + output[:, CONFIG.sub.J]


def of_class(output: Tensor) -> Tensor:
    return output[:, 0] * Scorer.power * Scorer.table[1] * Scorer.scaled(2.0) * Color.RED.value


SCORER, NET = Scorer(), Net()


def of_object(output: Tensor) -> Tensor:
    return SCORER.inner.score(output)


@pytest.mark.parametrize(
    ("function", "place", "name", "value"),
    [
        (SCORER, Base, "score", other_score),
        (SCORER, Base, "table", (3.0, 2.0)),
        (SCORER, Base, "shift", 2.0),
        (SCORER, Scorer, "power", 3),
        (SCORER, Scorer, "half", property(lambda self: 0.5)),
        (SCORER, Scorer, "scaled", staticmethod(lambda value: 2 * value)),
        (SCORER, Scorer, "unused", other_score),
        (SCORER.method, Base, "score", other_score),
        (SCORER.method, SCORER, "inner", Probe(torch.ones(3))),
        (SCORER.inner.score, Base, "score", other_score),
        (of_module, CONFIG, "I", 2),
        (of_module, CONFIG.sub, "J", 3),
        (of_class, Scorer, "power", 3),
        (of_class, Base, "table", (1.0, 3.0)),
        (of_class, Scorer, "scaled", staticmethod(lambda value: 2 * value)),
        (of_object, Base, "score", other_score),
        (NET, Net, "forward", other_score),
        (NET, NET, "factor", 3.0),
        (nn.Sequential(NET), Net, "forward", other_score),
    ],
)
def test_digest_sees_what_is_read_in_classes_and_modules(
    function, place, name, value, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    before = code_digest(function)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, value)
        assert code_digest(function) != before
    assert code_digest(function) == before


@pytest.mark.parametrize("function", [SCORER, SCORER.method, of_object])
def test_digest_sees_globals_of_methods(
    function: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = code_digest(function)
    monkeypatch.setitem(globals(), "WEIGHT", 3.0)
    assert code_digest(function) != before


def test_what_is_not_read_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_digest(of_module)
    monkeypatch.setattr(CONFIG, "other", 5)
    assert code_digest(of_module) == before
    before = code_digest(of_class)
    monkeypatch.setattr(torch, "condec_number", 5, raising=False)
    monkeypatch.setitem(globals(), "UNKNOWN", 5)  # used by a method that is not called
    assert code_digest(of_class) == before


def test_digest_of_a_function_that_holds_itself() -> None:
    def recursive(output: Tensor, depth: int = 2) -> Tensor:
        return output[:, 0] if depth == 0 else recursive(output, depth - 1)

    assert len(code_digest(recursive)) == 16


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            lambda output: output,
            OptionError,
            r"one floating-point number for each of 3 samples; got torch.float32 of shape \(3, 3\)",
        ),
        (lambda output: output.argmax(1), OptionError, "got torch.int64 of shape"),
        (lambda output: output.sum().item(), OptionError, r"a Tensor of shape \[sample\]; got flo"),
        (
            lambda output: output[:, 9],
            ModelError,
            r"Custom: .*lambda> failed on an output of shape \(3, 3\): .*any number of samples",
        ),
        (
            lambda output: output[:, 0] - output[:, 0].mean(),
            OptionError,
            "mixes the samples: for the last sample of the batch it gives .*, for the same sample",
        ),
        (
            lambda output: output[range(3), [0, 1, 2]],
            ModelError,
            r"failed on an output of shape \(1, 3\)",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_functions_that_are_no_targets(function, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        contribute(small_mlp(), torch.randn(3, 5), "1", target=function)


@pytest.mark.usefixtures("unchecked")
def test_things_that_are_no_functions() -> None:
    for thing in ("top1", 3, Logit):
        with pytest.raises(OptionError, match="expected a target such as TopK"):
            as_target(thing)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="expected a function from output to"):
        Custom("top1")  # type: ignore[arg-type]


def test_values_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(OptionError, match="uses a value of type object, which a store cannot"):
        code_digest(scaled_by(object()))
