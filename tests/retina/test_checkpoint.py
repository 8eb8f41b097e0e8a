"""Checkpoints of the retina's network: those of torch-deep-retina in every variant, and our own."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from condec.basis.errors import ModelError, OptionError
from condec.models import load_model
from condec.retina.models.checkpoint import load_checkpoint, save_checkpoint
from condec.retina.models.network import RetinaCheckpoint, RetinaLayout, RetinaNetwork

# --- the library's networks, written for these tests by its layout ------------------------


class AbsNorm(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.running_mean = nn.Parameter(torch.randn(n))
        self.running_var = nn.Parameter(torch.rand(n) + 0.2)
        self.scale = nn.Parameter(torch.randn(n))
        self.shift = nn.Parameter(torch.randn(n))

    def forward(self, x: Tensor) -> Tensor:
        mean, var, scale, shift = (
            p.view(-1, *[1] * (x.ndim - 2))
            for p in (self.running_mean, self.running_var, self.scale, self.shift)
        )
        return (x - mean) / (var + 1e-3).sqrt() * scale.abs() + shift


class Noise(nn.Module):
    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = nn.Parameter(torch.tensor([sigma]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Stack(nn.Module):
    def __init__(self, n_in: int, n_out: int, kernel: int, side: int, mid: int, drop: float):
        super().__init__()
        number = (kernel - side) // (side - 1) + 1
        widths = [n_in, *[mid] * (number - 1), n_out]
        parts: list[nn.Module] = []
        for i in range(number):
            parts.append(nn.Conv2d(widths[i], widths[i + 1], side, bias=i == number - 1))
            if drop > 0 and i < number - 1:
                parts.append(nn.Dropout(drop))
        self.convs = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class Grab(nn.Module):
    def __init__(self, hyps: dict[str, Any]) -> None:
        super().__init__()
        k, (_, height, width) = hyps["ksizes"], hyps["img_shape"]
        h = (k[0] - 1) + (k[1] - 1) + (k[2] // 2 - 1) + 1
        self.places = [
            (min(max(0, r - h), height - 2 * (h - 1)), min(max(0, c - h), width - 2 * (h - 1)))
            for r, c in hyps["centers"]
        ]

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, n, r, c] for n, (r, c) in enumerate(self.places)], 1)


class Weighted(nn.Module):
    def __init__(self, n: int, places: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(n, places))

    def forward(self, x: Tensor) -> Tensor:
        p = self.w - self.w.min(1).values[:, None]
        p = p / p.sum(1)[:, None]
        return torch.einsum("bnp,np->bn", x.flatten(2), p)


class Exp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x)


class Reference(nn.Module):
    """One `sequential`, with the indices that the library's constructors give."""

    def __init__(self, model_type: str, hyps: dict[str, Any]) -> None:
        super().__init__()
        self.exp = hyps["inference_exp"]
        retinotopic, plain = model_type == "RetinotopicModel", model_type == "BNCNN"
        stacked = not plain and hyps["stackconvs"]
        n_in, height, width = hyps["img_shape"]
        kernels, parts = hyps["ksizes"], []

        def norm(n: int, flat: bool) -> nn.Module:
            if not plain:
                return AbsNorm(n)
            made = (nn.BatchNorm1d if flat else nn.BatchNorm2d)(n, eps=1e-3)
            for tensor in (made.weight, made.bias, made.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(made.running_var, 0.2, 1.0)
            return made

        for i, n_out in enumerate(hyps["chans"]):
            mid = (hyps["stack_chans"] or [None, None])[i] or n_out
            parts.append(
                Stack(n_in, n_out, kernels[i], 3, mid, hyps["drop_p"])
                if stacked
                else nn.Conv2d(n_in, n_out, kernels[i], bias=hyps["bias"])
            )
            height, width = height - kernels[i] + 1, width - kernels[i] + 1
            if hyps["bnorm_d"] == 1:
                size = n_out * height * width
                parts += [nn.Flatten(), norm(size, True), nn.Unflatten(1, (n_out, height, width))]
            else:
                parts.append(norm(n_out, False))
            parts += [Noise(hyps["noise"]), nn.ReLU()]
            n_in = n_out
        n_cells = hyps["n_units"]
        height, width = height - kernels[-1] + 1, width - kernels[-1] + 1
        if retinotopic:
            parts += [nn.Conv2d(n_in, n_cells, kernels[-1], bias=hyps["bias"]), AbsNorm(n_cells)]
            parts += [nn.Softplus(), Weighted(n_cells, height * width)]
        elif hyps["convgc"]:
            parts += [nn.Conv2d(n_in, n_cells, kernels[-1], bias=hyps["gc_bias"]), Grab(hyps)]
        else:
            size = n_in * (height + kernels[-1] - 1) * (width + kernels[-1] - 1)
            parts += [nn.Flatten(), nn.Linear(size, n_cells, bias=hyps["gc_bias"])]
        if not retinotopic:
            parts += [norm(n_cells, True), nn.Softplus() if hyps["softplus"] else Exp()]
        self.sequential = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        x = self.sequential(x)
        return x.exp() if self.exp else x


HYPS: dict[str, Any] = {
    "n_units": 3, "img_shape": [4, 14, 15], "chans": [2, 3], "ksizes": [5, 3, 3], "bnorm_d": 2,
    "noise": 0.05, "bias": True, "gc_bias": False, "softplus": True, "inference_exp": False,
    "convgc": False, "drop_p": 0.0, "stackconvs": True, "stack_chans": None, "n_layers": 3,
    "centers": [[6, 7], [9, 8], [3, 12]], "bn_moment": 0.01, "lr": 0.001, "exp_name": "x",
}  # fmt: skip
CELLS = [0, 13, 20]
TYPES = ("RetinotopicModel", "LinearStackedBNCNN", "VaryModel", "BNCNN")

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{kind}-{name}": (kind, {"bnorm_d": dimension, **change})
    for kind in TYPES
    for dimension in (1, 2)
    for name, change in {
        f"norm {dimension}": {},
        f"norm {dimension}, grabbed": {"convgc": True, "gc_bias": True},
        f"norm {dimension}, exp": {"softplus": False, "gc_bias": True},
        f"norm {dimension}, inference exp": {"inference_exp": True, "drop_p": 0.2},
    }.items()
} | {
    "plain": ("VaryModel", {"stackconvs": False, "bias": False}),
    "plain one-hot": ("RetinotopicModel", {"stackconvs": False, "bias": False}),
    "stack channels": ("VaryModel", {"stack_chans": [4, None], "drop_p": 0.1}),
}  # fmt: skip


def made(kind: str, change: dict[str, Any]) -> tuple[Reference, dict[str, Any]]:
    """A random network of the library, and what the library saves of it."""
    hyps = {**HYPS, **change}
    network = Reference(kind, hyps).eval()
    return network, {
        "model_type": kind, "hyps": hyps, "model_state_dict": network.state_dict(),
        "norm_stats": {"mean": 51.5, "std": 7.25}, "cells": CELLS, "dataset": "15-11-21b",
        "stim_type": "naturalscene", "img_shape": hyps["img_shape"], "epoch": 40, "loss": 0.1,
    }  # fmt: skip


def saved(path: Path, record: object) -> Path:
    torch.save(record, path)  # noqa: TID251  # as the library leaves it
    return path


def clips(n: int = 4) -> Tensor:
    return torch.randn(n, *HYPS["img_shape"])


quietly = pytest.mark.filterwarnings("ignore:.*counts from the end:UserWarning")

# --- every variant ------------------------------------------------------------------------


@quietly
@pytest.mark.parametrize("variant", VARIANTS)
def test_rates_are_those_of_the_library(tmp_path: Path, variant: str) -> None:
    network, record = made(*VARIANTS[variant])
    got = load_checkpoint(saved(tmp_path / "a.pt", record))
    x = clips()
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(got.network(x), expected, rtol=1e-5, atol=1e-6)
    assert expected.std() > 1e-3
    assert got.network.noise2.std.item() == pytest.approx(0.05)
    assert {"conv1", "relu1", "conv2", "relu2", "conv3"} <= dict(got.network.named_modules()).keys()


def test_what_is_known_about_it(tmp_path: Path) -> None:
    _, record = made("RetinotopicModel", {})
    got = load_checkpoint(saved(tmp_path / "a.pt", record))
    assert got.cells == ("0", "13", "20")
    assert got.scaling == (51.5, 7.25)
    assert (got.dataset, got.stim_type) == ("15-11-21b", "naturalscene")
    assert got.layout == RetinaLayout(
        n_cells=3, image_shape=(4, 14, 15), channels=(2, 3), kernels=(5, 3, 3),
        stack_channels=(2, 3),
    )  # fmt: skip
    assert not got.network.training


def test_as_a_model_with_its_shape_cells_and_scaling(tmp_path: Path) -> None:
    network, record = made("RetinotopicModel", {})
    saved(tmp_path / "a.pt", record)
    loaded = load_model("retina:a.pt", folder=tmp_path)
    assert loaded.name == "retina:a.pt"
    assert loaded.input_shape == (4, 14, 15)
    assert loaded.label_names == ("0", "13", "20")
    assert loaded.scaling == (51.5, 7.25)
    x = clips()
    torch.testing.assert_close(loaded.model(x), network(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(OptionError, match=r"'retina:a.pt' brings its own weights; got 'b.pt'"):
        load_model("retina:a.pt", "b.pt", folder=tmp_path)


def older(record: dict[str, Any]) -> None:
    record["model_hyps"] = record.pop("hyps")


def older_with_none(record: dict[str, Any]) -> None:
    record["model_hyps"], record["hyps"] = record["hyps"], None


def renamed(record: dict[str, Any]) -> None:
    """Names of another version, on another device's wrapper; modules stand in the same order."""
    state = record["model_state_dict"]
    parts: dict[str, str] = {}
    for key in state:
        parts.setdefault(key.rpartition(".")[0], f"module.layer{len(parts)}")
    record["model_state_dict"] = {
        f"{parts[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": v for key, v in state.items()
    }


def of_numpy(record: dict[str, Any]) -> None:
    record["norm_stats"] = {"mean": np.float64(51.5), "std": np.float32(7.25)}
    record["cells"] = np.array(CELLS)
    record["hyps"] |= {"n_units": np.int64(3), "bias": np.bool_(True)}


def pair(record: dict[str, Any]) -> None:
    record["norm_stats"] = [51.5, torch.tensor(7.25)]


def bare(record: dict[str, Any]) -> None:
    """Facts only once: sizes from the tops of the file, defaults of the constructor."""
    record["hyps"] = {k: record["hyps"][k] for k in ("chans", "ksizes", "bnorm_d")}


@pytest.mark.parametrize("change", [older, older_with_none, renamed, of_numpy, pair, bare])
def test_other_versions_of_the_file(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    network, record = made("RetinotopicModel", {})
    change(record)
    got = load_checkpoint(saved(tmp_path / "a.pt", record))
    x = clips()
    torch.testing.assert_close(got.network(x), network(x), rtol=1e-5, atol=1e-6)
    assert got.scaling == (51.5, 7.25)
    assert got.cells == ("0", "13", "20")


def test_arguments_from_the_file_beside(tmp_path: Path) -> None:
    network, record = made("VaryModel", {})
    hyps = record.pop("hyps")
    (tmp_path / "hyperparams.json").write_text(json.dumps(hyps | {"model_type": "VaryModel"}))
    del record["model_type"], record["cells"], record["norm_stats"]
    got = load_checkpoint(saved(tmp_path / "a.pt", record))
    x = clips()
    torch.testing.assert_close(got.network(x), network(x), rtol=1e-5, atol=1e-6)
    assert got.cells == ("0", "1", "2")
    assert got.scaling is None


@pytest.mark.parametrize("stacked", [True, False])
def test_pruned_channels_are_zero(tmp_path: Path, stacked: bool) -> None:
    network, record = made("RetinotopicModel", {"stackconvs": stacked})
    record["zero_dict"] = {"sequential.0": {1}, "sequential.4": [0, 2]}
    got = load_checkpoint(saved(tmp_path / "a.pt", record))
    with torch.no_grad():
        for index, channels in ((0, [1]), (4, [0, 2])):
            conv = network.sequential[index]
            conv = conv.convs[-1] if isinstance(conv, Stack) else conv
            conv.weight[channels] = 0.0
            conv.bias[channels] = 0.0
    x = clips()
    torch.testing.assert_close(got.network(x), network(x), rtol=1e-5, atol=1e-6)
    assert bool((got.network.conv1(x)[:, 1] == 0).all())
    assert not bool((got.network.conv1(x)[:, 0] == 0).any())


# --- grabbed units ------------------------------------------------------------------------


def test_cells_that_all_read_one_place_are_reported(tmp_path: Path) -> None:
    """K = (5, 5, 3) on 15 x 14: h = 9, so 15 - 16 = -1 for every row, 14 - 16 = -2 for columns."""
    _, record = made("VaryModel", {"convgc": True, "ksizes": [5, 5, 3], "img_shape": [4, 15, 14]})
    path = saved(tmp_path / "a.pt", record)
    message = (
        r"a.pt: reads cells at \(\(-1, -2\), \(-1, -2\), \(-1, -2\)\) of their maps, though their "
        r"centres are \(\(6, 7\), \(9, 8\), \(3, 12\)\): the library's rule is min\(max\(0, centre "
        r"- 9\), side - 16\), and -2 counts from the end.*is kept"
    )
    with pytest.warns(UserWarning, match=message):
        got = load_checkpoint(path)
    assert got.layout.positions == ((-1, -2),) * 3


def test_a_place_outside_the_map_is_refused(tmp_path: Path) -> None:
    """K = (5, 5, 5) on 14 x 15: h = 10, so 14 - 18 = -4 for every row, of a map of 2 rows."""
    _, record = made("VaryModel", {"convgc": True, "ksizes": [5, 5, 5]})
    with (
        pytest.warns(UserWarning, match="counts from the end"),
        pytest.raises(ModelError, match=r"positions .*\(-4, -3\).* outside the last map of 2 x 3"),
    ):
        load_checkpoint(saved(tmp_path / "a.pt", record))


def test_published_sizes_read_every_cell_at_one_place(tmp_path: Path) -> None:
    """15, 11, 11 on 50 x 50: -6 for every cell, place 10 of 16."""
    change = {"convgc": True, "ksizes": [15, 11, 11], "img_shape": [2, 50, 50], "chans": [1, 1]}
    network, record = made("LinearStackedBNCNN", change | {"centers": [[30, 20], [5, 45], [24, 8]]})
    with pytest.warns(UserWarning, match=r"reads cells at \(\(-6, -6\),.*-6 counts from the end"):
        got = load_checkpoint(saved(tmp_path / "a.pt", record))
    x = torch.randn(1, 2, 50, 50)
    torch.testing.assert_close(got.network(x), network(x), rtol=1e-5, atol=1e-6)


def test_cells_at_places_of_their_own(tmp_path: Path) -> None:
    network, record = made("VaryModel", {"convgc": True, "img_shape": [4, 30, 31]})
    record["hyps"]["centers"] = [[10, 7], [16, 14], [12, 20]]
    network = Reference("VaryModel", record["hyps"]).eval()
    network.load_state_dict(record["model_state_dict"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = load_checkpoint(saved(tmp_path / "a.pt", record))
    assert len(set(got.layout.positions)) == 3
    x = torch.randn(2, 4, 30, 31)
    torch.testing.assert_close(got.network(x), network(x), rtol=1e-5, atol=1e-6)


# --- what is refused ----------------------------------------------------------------------


def hyp(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda record: record["hyps"].__setitem__(key, value)


def top(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.__setitem__(key, value)


def tensor(key: str, value: Tensor | None) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        if value is None:
            del record["model_state_dict"][key]
        else:
            record["model_state_dict"][key] = value

    return change


WRONG: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (lambda r: r.pop("hyps"), "no such file; expected json.*has neither hyps nor model_hyps, but"),
    (top("hyps", [1]), "hyps: expected a mapping; got list"),
    (top("model_type", "LN"), r"model_type: Input should be 'BNCNN', .*; got LN \(str\)"),
    (top("cells", 3), r"cells: Input should be a valid tuple; got 3 \(int\)"),
    (top("cells", [1, 2]), "cells: expected 3 names; got 1, 2"),
    (top("norm_stats", {"mean": 1.0}), "norm_stats.1: Input should be a valid number; got None"),
    (top("model_state_dict", None), "model_state_dict: Input should be a valid dictionary; got No"),
    (top("zero_dict", [1]), "zero_dict: Input should be a valid dictionary"),
    (top("zero_dict", {"sequential.1": {0}}), "zero_dict: 'sequential.1' is no convolution with"),
    (top("zero_dict", {"sequential.0": {7}}), r"'sequential.0' is no convolution with .* \(7,\)"),
    (hyp("n_units", "three"), r"hyps.n_units: Input should be a valid integer.*got three \(str\)"),
    (hyp("noise", None), r"hyps.noise: Input should be a valid number; got None"),
    (hyp("bias", "so"), r"hyps.bias: Input should be a valid boolean.*; got so"),
    (hyp("ksizes", 3), r"hyps.ksizes: Input should be a valid tuple"),
    (hyp("stack_ksizes", [3]), r"hyps do not fit each other: .* expected 2 stack .*; got \(3,\)"),
    (hyp("img_shape", [4, 14]), r"hyps.img_shape.2: Field required; got \[4, 14\]"),
    (hyp("bnorm_d", 3), r"hyps.bnorm_d: Input should be 1 or 2; got 3"),
    (hyp("one2one", True), "hyps.one2one: networks of this kind cannot be read"),
    (hyp("kinetic", True), "hyps.kinetic: networks of this kind cannot be read"),
    (hyp("paddings", [2, 0]), "hyps.paddings: networks of this kind cannot be read"),
    (hyp("activ_fxn", "Tanh"), r"hyps.activ_fxn: Input should be 'ReLU'; got Tanh"),
    (hyp("ksizes", [9, 9, 3]), "hyps do not fit each other: RetinaLayout: kernels .* too large"),
    (hyp("chans", [2, 4]), r"sequential.4.convs.0 is conv2.0.* do not fit .*mismatch for conv2.0"),
    (hyp("bnorm_d", 1), r"do not fit the layout: .*size mismatch for norm1.units.weight"),
    (hyp("stackconvs", False), "expected tensors of 9 modules for these hyps; got 10: sequential"),
    (tensor("sequential.1.scale", None), r"do not fit the layout: .*Missing key.*norm1.weight"),
    (tensor("sequential.11.w", None), "expected tensors of 10 modules for these hyps; got 9: seq"),
    (tensor("sequential.12.w", torch.ones(1)), "for these hyps; got 11: .*sequential.12"),
    (tensor("sequential.1.shift", torch.full((2,), torch.nan)), "sequential.1.shift: not finite"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    _, record = made("RetinotopicModel", {})
    change(record)
    with pytest.raises(ModelError, match=message):
        load_checkpoint(saved(tmp_path / "a.pt", record))


def test_grabbed_units_need_centres_and_three_convolutions(tmp_path: Path) -> None:
    _, record = made("VaryModel", {"convgc": True})
    del record["hyps"]["centers"]
    message = r"units are grabbed \(convgc\) after 3 convolutions, at centers"
    with pytest.raises(ModelError, match=message):
        load_checkpoint(saved(tmp_path / "a.pt", record))
    record["hyps"] |= {"centers": [[1, 2]] * 3, "chans": [2], "n_layers": 2}
    with pytest.raises(ModelError, match=message):
        load_checkpoint(saved(tmp_path / "a.pt", record))


class Custom:
    """An object whose loading would run code."""


def test_files_that_are_something_else(tmp_path: Path) -> None:
    _, record = made("RetinotopicModel", {})
    with pytest.raises(
        ModelError,
        match=r"read as tensors, numbers and texts .it holds Python objects .*Custom, whose code",
    ):
        load_checkpoint(saved(tmp_path / "a.pt", record | {"optimizer": Custom()}))
    with pytest.raises(ModelError, match=r"expected a dict with model_state_dict.*; got list"):
        load_checkpoint(saved(tmp_path / "a.pt", [1, 2]))
    with pytest.raises(OptionError, match=r"there is no file .*b.pt"):
        load_checkpoint(tmp_path / "b.pt")
    del record["hyps"]
    (tmp_path / "hyperparams.json").write_text("{")
    with pytest.raises(ModelError, match=r"hyperparams.json: cannot be read as json"):
        load_checkpoint(saved(tmp_path / "a.pt", record))


@pytest.mark.usefixtures("unchecked")
def test_messages_about_the_text_form(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"there is no file .*a.pt.cells=1"):
        load_model("retina:a.pt?cells=1", folder=tmp_path)


# --- our own files ------------------------------------------------------------------------

SMALL = RetinaLayout(
    n_cells=2, image_shape=(4, 9, 10), channels=(2, 2), kernels=(3, 3, 3), readout="grabbed",
    positions=((1, 2), (-1, 0)), norm="unit", dropout=0.1, stack=(2, 3), stack_channels=(3, 2),
)  # fmt: skip


def own() -> RetinaCheckpoint:
    network = RetinaNetwork(SMALL)
    network(torch.randn(8, 4, 9, 10))  # in training: statistics of normalisation move
    return RetinaCheckpoint(
        network=network.eval(), cells=("a", "b"), scaling=(1.0, 2.0), dataset="planted"
    )


def test_own_files_hold_everything(tmp_path: Path) -> None:
    checkpoint = own()
    save_checkpoint(tmp_path / "new" / "a.safetensors", checkpoint)
    got = load_checkpoint(tmp_path / "new" / "a.safetensors")
    assert got.layout == SMALL
    known = ("cells", "scaling", "dataset", "stim_type")
    assert [getattr(got, k) for k in known] == [getattr(checkpoint, k) for k in known]
    x = torch.randn(2, 4, 9, 10)
    assert torch.equal(got.network(x), checkpoint.network(x))
    loaded = load_model("retina:new/a.safetensors", folder=tmp_path)
    assert torch.equal(loaded.model(x), checkpoint.network(x))


def test_own_files_that_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(OptionError, match=r"written as .safetensors"):
        save_checkpoint(tmp_path / "a.pt", own())
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"read as a network of the retina .SafetensorError"):
        load_checkpoint(path)
    save_file({"w": torch.ones(1)}, path)
    with pytest.raises(
        ModelError, match=r"read as a network of the retina .KeyError: 'condec_retina'"
    ):
        load_checkpoint(path)
    known = {"cells": [], "scaling": None, "layout": {"n_cells": 1, "colour": 2}}
    save_file({"w": torch.ones(1)}, path, {"condec_retina": json.dumps(known)})
    with pytest.raises(ModelError, match=r"TypeError: .* unexpected keyword argument 'colour'"):
        load_checkpoint(path)
    known["layout"] = {"n_cells": 1}
    save_file({"w": torch.ones(1)}, path, {"condec_retina": json.dumps(known)})
    with pytest.raises(ModelError, match=r"its tensors do not fit the layout: .*Missing key"):
        load_checkpoint(path)
