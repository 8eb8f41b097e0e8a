"""Options are written down and read back; what cannot be read back says so."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from condec.basis.errors import OptionError
from condec.basis.options import Option, digest_of, option_from_dict


@dataclass(frozen=True, kw_only=True)
class Inner(Option):
    value: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Outer(Option):
    inner: Inner
    several: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Heavy(Option):
    values: Tensor


KNOWN = {"Outer": Outer, "Heavy": Heavy}
INSIDE = {"inner": {"Inner": Inner}}


def test_there_and_back() -> None:
    option = Outer(inner=Inner(value=2.5), several=(1, 2))
    record = option.to_dict()
    assert record == {
        "name": "Outer",
        "inner": {"name": "Inner", "value": 2.5},
        "several": [1, 2],
    }
    assert option_from_dict("thing", KNOWN, INSIDE, record) == option


def test_a_tensor_is_its_digest() -> None:
    record = Heavy(values=torch.ones(2)).to_dict()
    assert record["values"] == f"tensor {digest_of(torch.ones(2))}"
    assert digest_of(torch.ones(2)) != digest_of(torch.ones(2, 1))
    assert digest_of(torch.ones(2)) != digest_of(torch.ones(2).double())
    assert digest_of(None) == ""
    with pytest.raises(OptionError, match=r"thing Heavy: it holds a tensor, .* give the option"):
        option_from_dict("thing", KNOWN, INSIDE, record)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"name": "Other"}, "thing: expected one of Outer, Heavy; got 'Other'"),
        ({"name": "Outer", "inner": {"name": "No"}}, "inner: expected one of Inner; got 'No'"),
        ({"name": "Heavy", "no": 1}, "thing Heavy: .*no"),
    ],
)
def test_bad_records_are_explained(record, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(OptionError, match=message):
        option_from_dict("thing", KNOWN, INSIDE, record)
