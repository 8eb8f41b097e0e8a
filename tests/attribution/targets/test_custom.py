"""Functions as targets: taken wherever a target is, checked, and told apart in stores."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from condec.attribution.contributions import contribute
from condec.attribution.targets import Custom, Logit, TargetLike, as_target, target_from_dict
from condec.basis.errors import ModelError, OptionError, StoreError
from condec.explanation import mode_map
from condec.store import Store, collect
from condec.testing.models import small_mlp, small_resnet


def helper(output: Tensor) -> Tensor:
    return output[:, 0]


def scaled(output: Tensor, factor: float = 2.0) -> Tensor:
    return output[:, 0] * factor


def scaled_by(value: object) -> Callable[[Tensor], Tensor]:
    return lambda output: output[:, 0] * torch.as_tensor(value).sum()


def test_a_function_is_taken_wherever_a_target_is(tmp_path: Path) -> None:
    model, images = small_resnet(), torch.randn(3, 1, 5, 5)
    ours, named = Custom(lambda output: output[:, 1], "second"), Logit(1)
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

    def run(target: TargetLike) -> None:
        collect(small_mlp(), data, "1", target=target, out=out, progress=False)

    run(Custom(helper, "first"))
    run(Custom(helper, "first"))
    for other in (Custom(scaled_by(2.0), "scaled"), Logit(0)):
        with pytest.raises(StoreError, match="target"):
            run(other)
    assert Store.open(out).recipe["target"] == {"name": "Custom", "function": "first"}


def test_plain_form_has_the_label_and_no_way_back() -> None:
    plain = Custom(scaled_by(2.0), "double").to_dict()
    assert plain == {"name": "Custom", "function": "double"}
    with pytest.raises(OptionError, match=r"target Custom: .* 'double'; .* itself in Python"):
        target_from_dict(plain)


@pytest.mark.parametrize("function", [scaled, scaled_by(2.0), nn.Flatten(0), torch.numel])
def test_functions_of_a_store_need_a_label(function) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(OptionError, match=r"cannot tell .* from another .*Custom\(function, label"):
        Custom(function).to_dict()


def test_a_store_is_not_begun_without_the_label_that_it_needs(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="a store cannot tell"):
        collect(small_mlp(), torch.randn(4, 5), "1", target=scaled, out=tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


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
    for thing in (3, Logit):
        with pytest.raises(OptionError, match="expected a target such as TopK"):
            as_target(thing)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="expected a function from output to"):
        Custom("top1")  # type: ignore[arg-type]
