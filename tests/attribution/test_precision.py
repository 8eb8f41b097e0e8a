"""Precision and memory order change rounding, and nothing else."""

import pytest
import torch
from torch import nn

from condec.attribution import IntegratedGradients
from condec.attribution.contributions import contribute
from condec.attribution.precision import Compute
from condec.attribution.targets import Logit
from condec.basis.errors import OptionError
from condec.basis.options import option_from_dict
from condec.testing.models import small_mlp, small_resnet


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_reach_the_model_in_the_order_asked_for(channels_last: bool) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(36, 2)).eval()
    strides = []
    model[0].register_forward_pre_hook(lambda m, args: strides.append(args[0].stride()))
    x = torch.randn(3, 2, 6, 5)
    kept = x.clone()
    compute = Compute(channels_last=channels_last)
    batch = contribute(model, x, "0", target=Logit(0), compute=compute, prove=False)
    asked = (60, 1, 10, 2) if channels_last else (60, 30, 5, 1)
    assert set(strides[strides.index(asked) :]) == {asked}  # before it, the model is looked at
    plain = contribute(model, x, "0", target=Logit(0))
    torch.testing.assert_close(batch["0"].contribution, plain["0"].contribution)
    assert x.stride() == kept.stride()
    assert torch.equal(x, kept)


def test_autocast_runs_in_half_precision_and_sums_in_single() -> None:
    model, seen = small_resnet(), []
    model.head.register_forward_hook(lambda m, x, out: seen.append(out.dtype))
    x = torch.randn(4, 1, 6, 5)
    compute = Compute(precision="bfloat16")
    half = contribute(model, x, "block*", target=Logit(0), compute=compute, prove=False)
    # The passes before look at the model.
    assert set(seen[seen.index(torch.bfloat16) :]) == {torch.bfloat16}
    full = contribute(model, x, "block*", target=Logit(0))
    assert seen[-1] == torch.float32
    for site in ("block1", "block2"):
        assert half[site].contribution.dtype == torch.float32
        off = (half[site].contribution - full[site].contribution).abs().sum()
        assert 0 < off < 0.1 * full[site].contribution.abs().sum()


def test_double_precision_stays_double() -> None:
    batch = contribute(small_mlp().double(), torch.randn(2, 5), "1", method=IntegratedGradients())
    assert batch["1"].contribution.dtype == torch.float64


def test_options() -> None:
    compute = Compute(precision="float16", channels_last=False)
    assert option_from_dict("compute", {"Compute": Compute}, {}, compute.to_dict()) == compute


def test_an_unknown_precision_is_refused(unchecked) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(OptionError, match=r"precision must be one of model, .*got 'int8'"):
        Compute(precision="int8")
