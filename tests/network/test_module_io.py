"""The one tensor of an output: found, and exchanged without touching anything else."""

import collections
import types
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from condec.attribution.contributions import contribute
from condec.attribution.targets import Logit
from condec.basis.errors import ModelError, SiteError
from condec.network.cuts import inspect_model
from condec.network.module_io import describe, first_tensor, is_recordable, with_first_tensor

X, Y = torch.tensor([1.0, 2.0]), torch.tensor([3.0])


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Output:
    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class Frozen:
    name: str
    values: Tensor
    made: int = field(init=False, default=3)

    def __post_init__(self) -> None:
        raise AssertionError("made anew")


def frozen() -> Frozen:
    made = object.__new__(Frozen)
    for key, value in (("name", "a"), ("values", X), ("made", 4)):
        object.__setattr__(made, key, value)
    return made


CASES = {
    "tensor": X,
    "tuple": (None, X, Y),
    "list": ["a", X],
    "named tuple": Pair("a", X),
    "floating before whole numbers": (torch.tensor([1]), X),
    "dictionary": {"a": 1, "b": X, "c": Y},
    "logits before others": {"loss": Y, "logits": X},
    "ordered": collections.OrderedDict(a=None, b=X),
    "default": collections.defaultdict(list, {"b": X}),
    "user's": collections.UserDict({"b": X}),
    "dataclass, logits before others": Output(loss=Y, logits=X, hidden=(Y,)),
    "dataclass with None": Output(loss=X),
    "frozen dataclass": frozen(),
}


@pytest.mark.parametrize("value", CASES.values(), ids=CASES.keys())
def test_found_and_exchanged(value: Any) -> None:
    new = torch.tensor([9.0])
    assert first_tensor(value) is X
    changed = with_first_tensor(value, new)
    assert type(changed) is type(value)
    assert first_tensor(changed) is new
    # The given one is as it was, and so is all else.
    assert first_tensor(value) is X
    assert str(with_first_tensor(changed, X)) == str(value)


@pytest.mark.parametrize(
    "value", [None, "text", 3, (), {}, ["a"], Output, Output(), {"a": {"b": X}}]
)
def test_nothing_there(value: Any) -> None:
    assert first_tensor(value) is None
    assert with_first_tensor(value, None) is value


def test_outputs_of_hugging_face() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    given = outputs.ImageClassifierOutput(logits=X, hidden_states=(Y, X))
    assert first_tensor(given) is X
    changed = with_first_tensor(given, Y)
    assert type(changed) is outputs.ImageClassifierOutput
    assert changed.logits is changed["logits"] is Y
    assert changed.loss is None
    assert list(changed.keys()) == ["logits", "hidden_states"]
    assert given.logits is X
    assert first_tensor(outputs.BaseModelOutput(last_hidden_state=X)) is X
    assert first_tensor(outputs.ImageClassifierOutput(loss=Y, logits=X)) is X


def test_what_can_be_recorded() -> None:
    assert is_recordable(X)
    assert is_recordable(X.half())
    for other in (X.long(), X.bool(), X.to(torch.complex64), X.to_sparse()):
        assert not is_recordable(other)


@dataclass
class Block:
    """What the inner layer returns."""

    hidden: Tensor
    attention: Tensor | None = None


class Inside(nn.Module):
    def __init__(self, change: Any) -> None:
        super().__init__()
        self.linear, self.change = nn.Linear(3, 3), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.linear(x))


class Outside(nn.Module):
    """Reads what the layer inside gives with `unpack`, and packs its own output in a dataclass."""

    def __init__(self, change: Any, unpack: Any, pack: Any = lambda y: Output(logits=y)) -> None:
        super().__init__()
        self.inside, self.head = Inside(change), nn.Linear(3, 2)
        self.unpack, self.pack = unpack, pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.head(self.unpack(self.inside(x))))


def test_models_of_dataclasses() -> None:
    model = Outside(lambda y: Block(hidden=y), lambda block: block.hidden).eval()
    plain = Outside(lambda y: y, lambda y: y, lambda y: y).eval()
    plain.load_state_dict(model.state_dict())
    inputs = torch.randn(4, 3)
    given, expected = (contribute(m, inputs, "inside") for m in (model, plain))
    assert torch.equal(given["inside"].contribution, expected["inside"].contribution)
    assert given["inside"].cut
    assert torch.equal(given.output, expected.output)


@pytest.mark.parametrize(
    ("change", "unpack", "gave"),
    [
        (lambda y: y.to_sparse(), lambda y: y.to_dense(), r"a sparse tensor \(torch.sparse_coo\)"),
        (lambda y: torch.complex(y, y), lambda y: y.real, "a tensor of type torch.complex64"),
        (lambda y: (y * 8).round().long(), lambda y: y / 8.0, "a tensor of type torch.int64"),
        (lambda y: (str(y.shape), y)[:1], lambda y: torch.ones(4, 3), "tuple without a tensor"),
        (lambda y: types.SimpleNamespace(y=y), lambda o: o.y, "SimpleNamespace without a tensor"),
        (lambda y: None, lambda y: torch.ones(4, 3), "got nothing"),
    ],
)
def test_layers_that_give_something_else_are_named(change, unpack, gave) -> None:  # type: ignore[no-untyped-def]
    model = Outside(change, unpack, lambda y: y).eval()
    # Something of the input must reach the output, or there is no question to answer.
    model.forward = lambda x: Outside.forward(model, x) + x[:, :2]  # type: ignore[method-assign]
    with pytest.raises(
        SiteError, match=f"inside: expected a dense floating-point tensor .* got .*{gave[4:]}"
    ):
        contribute(model, torch.randn(4, 3), "inside")


def test_nested_tensors_are_named() -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    assert not is_recordable(nested)
    assert describe(nested, nested) == "a nested tensor (torch.jagged)"


def test_models_that_give_no_tensor() -> None:
    model = Outside(lambda y: y, lambda y: y, lambda y: {"out": {"logits": y}}).eval()
    with pytest.raises(ModelError, match="Outside returned dict without a tensor"):
        contribute(model, torch.randn(4, 3), "inside")


class Features(NamedTuple):
    features: Tensor
    logits: Tensor


@dataclass
class Loss:
    loss: Tensor
    scores: Tensor
    kept: Tensor | None = None


def by_name(y: Tensor) -> dict[str, Any]:
    """Outputs of many kinds whose explained tensor is y, and how that is said."""
    other = y.sum(1, keepdim=True).expand(-1, 7) * 3
    return {
        "[sample, 2]": y,
        "'logits' of Features, [sample, 2]": Features(other, y),
        "'logits' of Output, [sample, 2]": Output(loss=other, logits=y),
        "'out' of dict, [sample, 2]": {"aux": other, "out": y},
        "'last_hidden_state' of dict, [sample, 2]": {"pooler": other, "last_hidden_state": y},
        "'scores' of Loss, [sample, 2]": Loss(y.sum(), y),
        "1 of tuple, [sample, 2]": (y.argmax(1), y),
        "0 of list, [sample, 2]": [y],
        "0 of tuple, [sample, 2]": (y, (other, other)),
    }


@pytest.mark.parametrize("said", by_name(torch.ones(1, 2)))
def test_one_rule_says_which_tensor_of_an_output_is_explained(said: str) -> None:
    plain = Outside(lambda y: y, lambda y: y, lambda y: y).eval()
    model = Outside(lambda y: y, lambda y: y, lambda y: by_name(y)[said]).eval()
    model.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3)
    found, wanted = (contribute(m, x, "inside", target=Logit(1)) for m in (model, plain))
    assert torch.equal(found.output, plain(x))
    assert torch.equal(found["inside"].contribution, wanted["inside"].contribution)
    assert inspect_model(model, x).attrs["explained"] == said


@pytest.mark.parametrize(
    ("pack", "held"),
    [
        (lambda y: (y, y * 2), r"tuple with several tensors \(0 \(\d, 2\), 1 \(\d, 2\)\)"),
        (lambda y: {"a": y, "b": y[:, :1]}, r"dict with several tensors \('a' \(\d, 2\), 'b'"),
        (lambda y: Loss(y.sum(), y, y + 1), r"Loss with several .*'scores'.*'kept'"),
    ],
)
def test_several_tensors_without_a_name_are_refused(pack: Any, held: str) -> None:
    model = Outside(lambda y: y, lambda y: y, pack).eval()
    with pytest.raises(ModelError, match=f"{held}.*Wrap the model in a module that returns"):
        contribute(model, torch.randn(4, 3), "inside")
