"""Records print in one line or one small table."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from torch import nn

from condec.basis.records import describe, short_repr
from condec.testing.models import small_resnet


@short_repr
@dataclass(frozen=True, slots=True)
class Small:
    name: str
    value: Any = None
    hidden: Any = field(default=0, repr=False)
    _own: int = 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(4, 2), "Tensor[4, 2] float32"),
        (torch.tensor(True), "Tensor[] bool"),
        (np.zeros((3, 1)), "ndarray[3, 1] float64"),
        (pandas.DataFrame({"a": [1, 2]}), "DataFrame[2, 1]"),
        (small_resnet(), "SmallResNet"),
        (0.123456789, "0.12346"),
        (Path("a") / "b", "'a/b'"),
        (describe, "describe()"),
        ((1, 2, 3), "(1, 2, 3)"),
        (tuple("abcd"), "(4 str)"),
        ([torch.zeros(1)], "(1 Tensor)"),
        ({"a": 1}, "{'a': 1}"),
        ({"a": torch.zeros(1), "b": 1}, "{2 Tensor or int}"),
        ("x" * 100, f"'{'x' * 55}...'"),
        (Small("a", "y" * 80), "Small(...)"),
        (nn.Linear, "<class 'torch.nn.modules.linear.Linear'>"),
    ],
)
def test_values_are_described_in_short(value: Any, text: str) -> None:
    assert describe(value) == text
    assert len(text) <= 60


def test_a_record_is_one_line_or_one_table() -> None:
    assert repr(Small("a")) == "Small(name='a')"
    assert repr(Small("a", torch.zeros(2))) == "Small(name='a', value=Tensor[2] float32)"
    assert repr(Small("n" * 50, "v" * 50)) == f"Small\n  name   '{'n' * 50}'\n  value  '{'v' * 50}'"
