"""The adapter to core-readout models of openretina, on a small one with random weights."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from condec import contribute, find_sites, load_model
from condec.attribution import IntegratedGradients
from condec.attribution.targets import Sum
from condec.basis.errors import ModelError, OptionError
from condec.models.torchvision import import_torchvision
from condec.retina.models.openretina import OpenRetina

CELLS = {"monday": 3, "tuesday": 2}


@pytest.fixture(scope="module")
def library() -> Any:
    """openretina's configurable core-readout model."""
    import_torchvision()  # torchmetrics imports it, and fails as it does
    return pytest.importorskip(
        "openretina.models.core_readout",
        reason="openretina is not installed: pip install --no-deps openretina moviepy",
        exc_type=ImportError,
    )


@pytest.fixture(scope="module")
def core_readout(library: Any) -> nn.Module:
    """Two layers over 3 colour-free frames each, two sessions; all statistics drawn."""
    from omegaconf import OmegaConf

    core = {
        "_target_": "openretina.modules.core.base_core.SimpleCoreWrapper",
        "temporal_kernel_sizes": [4, 3], "spatial_kernel_sizes": [3, 3], "gamma_input": 0.0,
        "gamma_temporal": 0.0, "gamma_in_sparse": 0.0, "gamma_hidden": 0.0,
        "cut_first_n_frames": 0, "hidden_padding": False, "convolution_type": "separable",
    }  # fmt: skip
    readout = {
        "_target_": "openretina.modules.readout.multi_readout.MultiGaussianMaskReadout",
        "scale": True, "bias": True, "gaussian_mean_scale": 6.0, "gaussian_var_scale": 4.0,
        "positive": True, "mask_l1_reg": 0.0, "feature_weights_l1_reg": 0.0,
    }  # fmt: skip
    torch.manual_seed(0)
    with warnings.catch_warnings():
        # It says which bias it starts from.
        warnings.filterwarnings("ignore", "Readout is NOT initialized", UserWarning)
        model = library.UnifiedCoreReadout(
            in_shape=(1, 12, 8, 8), n_neurons_dict=CELLS, hidden_channels=(4, 3),
            core=OmegaConf.create(core), readout=OmegaConf.create(readout),
            data_info={"movie_norm_dict": {"default": {"norm_mean": 30.0, "norm_std": 12.0}}},
        )  # fmt: skip
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("running_var", "features")):
                tensor.uniform_(0.2, 1.0)
            elif name.endswith(("running_mean", "bias")):
                tensor.normal_()
    return model.eval()


def clips(n: int = 3) -> Tensor:
    return torch.randn(n, 12, 8, 8)


def test_rates_at_the_last_frame(core_readout: nn.Module) -> None:
    x = clips()
    for session, n_cells in CELLS.items():
        model = OpenRetina(core_readout, session)
        whole = core_readout(x[:, None], data_key=session)
        assert whole.shape == (3, 12 - 3 - 2, n_cells)
        assert torch.equal(model(x), whole[:, -1])
        assert torch.equal(model(x[:, None]), model(x))
        assert whole[:, -1].std() > 1e-3
    assert not model.training
    assert model.scaling == (30.0, 12.0)


def test_the_last_rates_see_the_last_frames_only(core_readout: nn.Module) -> None:
    """Kernels of 4 and 3 frames reach over 6."""
    x = clips(1).requires_grad_()
    (gradient,) = torch.autograd.grad(OpenRetina(core_readout, "monday")(x).sum(), x)
    seen = gradient[0].abs().sum((1, 2)) > 0
    assert seen.tolist() == [False] * 6 + [True] * 6


def test_contributions_at_its_layers(core_readout: nn.Module) -> None:
    model = OpenRetina(core_readout, "monday")
    sites = find_sites(model, ["model.core.features.*.conv", "model.core.features.*.nonlin"])
    assert [site.name.removeprefix("model.core.features.") for site in sites] == [
        "layer0.conv", "layer0.nonlin", "layer1.conv", "layer1.nonlin",
    ]  # fmt: skip
    x = clips(2)
    found = contribute(model, x, sites, method=IntegratedGradients(steps=60), target=Sum((1,)))
    with torch.no_grad():
        change = (model(x) - model(torch.zeros(1, 12, 8, 8)))[:, 1]
    for site, shape in zip(
        sites, [(4, 9, 6, 6), (4, 9, 6, 6), (3, 7, 4, 4), (3, 7, 4, 4)], strict=True
    ):
        contribution = found[site].contribution
        assert contribution.shape == (2, *shape)
        # Frames that the last rates do not see contribute nothing.
        assert bool((contribution[:, :, : -3 if site in sites[:2] else -1] == 0).all())
        gap = (contribution.flatten(1).sum(1) - change).abs()
        assert bool((gap < 0.02 * contribution.abs().flatten(1).sum(1)).all())
    assert found.reduce()[sites[0]].contribution.shape[-1] == 4


def test_session_may_be_left_out_where_there_is_one(core_readout: nn.Module) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.readout = nn.ModuleDict({"only": core_readout.readout["tuesday"]})

        def forward(self, movie: Tensor, data_key: str) -> Tensor:
            """Rates of its cells are the mean of each channel."""
            assert data_key == "only"
            return movie.mean((3, 4)).transpose(1, 2)

    model = OpenRetina(One(), channels=2)
    x = clips()
    assert model.session == "only"
    assert model.scaling is None
    torch.testing.assert_close(model(x), x[:, -1].mean((1, 2))[:, None].expand(-1, 2))


def test_as_a_model_by_a_function_of_ones_own(tmp_path: Path, core_readout: nn.Module) -> None:
    (tmp_path / "net.py").write_text(
        "from condec.models import LoadedModel\n"
        "from condec.retina.models.openretina import OpenRetina\n"
        "given = []\n"
        "def make():\n"
        "    model = OpenRetina(given[0], 'monday')\n"
        "    return LoadedModel(model, 'x', (12, 8, 8), scaling=model.scaling)\n"
    )
    from condec.models.python import load_function

    load_function("net.py:make", folder=tmp_path).__globals__["given"].append(core_readout)
    loaded = load_model("python:net.py:make", folder=tmp_path)
    assert loaded.scaling == (30.0, 12.0)
    np.testing.assert_array_equal(loaded.model(clips(1)).shape, (1, 3))


@pytest.mark.usefixtures("unchecked")
def test_messages(core_readout: nn.Module) -> None:
    for session, message in (
        (None, "none is named; sessions are monday, tuesday"),
        ("sunday", "there is no 'sunday'; sessions are monday, tuesday"),
    ):
        with pytest.raises(OptionError, match=message):
            OpenRetina(core_readout, session)
    with pytest.raises(OptionError, match="channels must be at least 1; got 0"):
        OpenRetina(core_readout, "tuesday", channels=0)
    with pytest.raises(ModelError, match="Linear has NoneType as its readout"):
        OpenRetina(nn.Linear(2, 2))
    only = nn.Module()
    only.readout = nn.ModuleDict({"only": nn.Identity()})
    only.forward = lambda clip, data_key: clip[:, 0]
    with pytest.raises(ModelError, match=r"a clip of 12 frames; got shape \(1, 12, 8, 8\)"):
        OpenRetina(only)(clips(1))
