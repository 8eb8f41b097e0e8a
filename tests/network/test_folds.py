"""Another axis folded into the batch: what comes out is that of a model that folds nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from condec import (
    IntegratedGradients,
    Label,
    Logit,
    SeveralInputs,
    collect,
    contribute,
    find_cuts,
    inspect_model,
    mode_map,
)
from condec.attribution import (
    ActNormGrad,
    GradCAM,
    Method,
    SmoothGrad,
    UnitAblation,
    faithfulness,
)
from condec.attribution.baselines import Constant, Mean, Samples
from condec.basis.errors import SiteError
from condec.edits import (
    Ablate,
    Donors,
    Edit,
    Patch,
    Preserve,
    Project,
    Scale,
    Steer,
    edited,
    record_activation,
    unit_means,
)
from condec.effects.head import head_weights
from condec.effects.passes import Passes
from condec.models.torchvision import import_torchvision
from condec.network import FoldedUnits, Site, Units, check_order, count_folds, run_model, split_at

N_FRAMES = 4


class Frames(nn.Module):
    """Frames [sample, frame, channel, y, x], through a convolution by folding, or one in 3-D."""

    def __init__(self, folds: bool = True) -> None:
        super().__init__()
        self.folds = folds
        self.conv = nn.Conv2d(2, 3, 3) if folds else nn.Conv3d(2, 3, (1, 3, 3))
        self.after = nn.Conv2d(3, 3, 2) if folds else nn.Conv3d(3, 3, (1, 2, 2))
        self.score, self.mix, self.head = nn.Linear(3, 1), nn.Linear(3, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, t = x.shape[:2]
        given = x.flatten(0, 1) if self.folds else x.transpose(1, 2)
        h = self.after(self.conv(given).tanh()).tanh().mean((-1, -2))
        h = h.view(n, t, 3) if self.folds else h.transpose(1, 2)
        # Frames meet, and not only in a sum.
        return self.head(self.mix((self.score(h).softmax(1) * h).sum(1)).tanh())


class Sentences(nn.Module):
    """Sentences [sample, sentence, token, feature], encoded one by one, or side by side."""

    def __init__(self, folds: bool = True) -> None:
        super().__init__()
        self.folds = folds
        self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 6)
        self.read, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        h = self.inner(x.flatten(0, 1) if self.folds else x)
        h = self.outer((h @ h.transpose(-1, -2)).softmax(-1) @ h).tanh().mean(-2)
        h = h.unflatten(0, (n, -1)) if self.folds else h
        return self.head(self.read(h).tanh().square().mean(1))


MODELS: dict[str, tuple[Callable[[bool], nn.Module], tuple[int, ...], list[str]]] = {
    "frames": (Frames, (4, 2, 7, 6), ["conv", "after:input", "mix"]),
    "sentences": (Sentences, (3, 5, 4), ["inner@features", "outer:input@heads(2)", "read"]),
}


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Make the model that folds, and the one that does not, of the same weights."""
    make = MODELS[name][0]
    torch.manual_seed(0)
    folding, plain = make(True).double().eval(), make(False).double().eval()
    shapes = {key: value.shape for key, value in plain.state_dict().items()}
    plain.load_state_dict({k: v.view(shapes[k]) for k, v in folding.state_dict().items()})
    return folding, plain


def inputs(name: str = "frames", n: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *MODELS[name][1], generator=generator).double()


def as_folded(name: str, plain: Tensor) -> Tensor:
    """Bring [sample, channel, frame, y, x] into the order [sample, frame, channel, y, x]."""
    return plain.transpose(1, 2) if plain.ndim == 5 else plain


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


METHODS: list[Method] = [
    IntegratedGradients(steps=3), IntegratedGradients(steps="auto", tolerance=0.2),
    IntegratedGradients(steps=2, path="layer"),
    IntegratedGradients(steps=2, baseline=Constant(0.5)), ActNormGrad(), GradCAM(),
    SmoothGrad(n_samples=2), UnitAblation(replacement="mean"),
    UnitAblation(replacement="resample"), UnitAblation(replacement="baseline"),
]  # fmt: skip


def check_same(name: str, n_samples: int, method: Method) -> None:
    folding, plain = pair(name)
    x, labels = inputs(name, n_samples), torch.arange(n_samples)
    sites, target = MODELS[name][2], Label(probability=True)
    found, expected = (
        contribute(model, x, sites, method=method, target=target, labels=labels)
        for model in (folding, plain)
    )
    assert [part.site.key for part in found.by_site] == [p.site.key for p in expected.by_site]
    for part, other in zip(found.by_site, expected.by_site, strict=True):
        close(part.contribution, as_folded(name, other.contribution))
        close(part.activation, as_folded(name, other.activation))
        assert part.cut == other.cut
    for part, other in zip(found.reduce().by_site, expected.reduce().by_site, strict=True):
        close(part.contribution, other.contribution)
    close(found.target_baseline, expected.target_baseline)
    assert (found.steps is None) or torch.equal(found.steps, expected.steps)
    for key, share in found.completeness().items():
        close(share, expected.completeness()[key])


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("name", MODELS)
def test_contributions_are_those_of_a_model_that_folds_nothing(name: str, method: Method) -> None:
    check_same(name, 3, method)


@pytest.mark.parametrize("path", ["input", "layer"])
def test_one_sample_alone_is_as_any(path: Literal["input", "layer"]) -> None:
    """Its rows are told from samples, where points of the path are stacked too."""
    check_same("frames", 1, IntegratedGradients(steps="auto", tolerance=0.2, path=path))


@pytest.mark.parametrize("name", MODELS)
def test_baselines_from_data_and_the_groups_of_a_large_batch(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = inputs(name, 2, seed=5)
    check_same(name, 2, IntegratedGradients(steps=2, baseline=Samples(n_samples=2, values=data)))
    check_same(name, 2, IntegratedGradients(steps=2, baseline=Mean(values=data.mean(0))))
    monkeypatch.setattr("condec.attribution.path._KEPT_BYTES", 1)
    check_same(name, 2, IntegratedGradients(steps="auto", tolerance=0.2))


def by_loop(model: Frames, x: Tensor, steps: int, logit: int) -> Tensor:
    """Contributions of ``conv`` [frame, channel, y, x] of one sample, by the model's pieces."""
    total, before = torch.zeros(0), None
    for k in range(steps + 1):
        h = model.conv(x * (k / steps)).detach().requires_grad_()
        pooled = model.after(h.tanh()).tanh().mean((-1, -2))
        weights = model.score(pooled).softmax(0)
        out = model.head(model.mix((weights * pooled).sum(0)).tanh())[logit]
        (g,) = torch.autograd.grad(out, h)
        if before is not None:
            part = (h.detach() - before[0]) * (g + before[1]) / 2
            total = part if before[2] == 0 else total + part
        before = h.detach(), g, k
    return total


@pytest.mark.parametrize("n_samples", [1, 3])
def test_contributions_are_those_of_a_plain_loop(n_samples: int) -> None:
    model, x = pair("frames")[0], inputs(n=n_samples)
    batch = contribute(model, x, "conv", method=IntegratedGradients(steps=6), target=Logit(2))
    assert batch["conv"].contribution.shape == (n_samples, 4, 3, 5, 4)
    for sample, found in zip(x, batch["conv"].contribution, strict=True):
        close(found, by_loop(model, sample, 6, 2))
    reduced = batch.reduce()["conv"].contribution[:, 0]
    close(reduced, batch["conv"].contribution.clamp(min=0).sum((1, 3, 4)))


def test_places_and_tokens_are_those_of_every_fold() -> None:
    model, x = pair("frames")[0], inputs()
    batch = contribute(model, x, ["conv", "conv@positions"], target=Logit(1)).reduce()
    full = contribute(model, x, "conv", target=Logit(1))["conv"].contribution
    close(batch["conv@positions"].contribution[:, 0], full.clamp(min=0).sum((1, 2)).flatten(1))
    model, x = pair("sentences")[0], inputs("sentences")
    some = ["inner", "inner@features[1:3]", "inner@tokens"]
    batch = contribute(model, x, some, target=Logit(1)).reduce()
    full = contribute(model, x, "inner", target=Logit(1))["inner"].contribution.clamp(min=0)
    close(batch["inner@features[1:3]"].contribution[:, 0], full[:, :, 1:3].sum((1, 2)))
    close(batch["inner@tokens"].contribution[:, 0], full.sum((1, 3)))


def test_stores_hold_what_a_model_that_folds_nothing_gives(tmp_path: Path) -> None:
    folding, plain = pair("frames")
    data = (inputs(n=5), torch.tensor([0, 1, 2, 0, 1]))
    kept = [
        collect(model, data, ["conv", "mix"], target=Logit(0), out=tmp_path / name, batch_size=2)
        for name, model in {"folding": folding, "plain": plain}.items()
    ]
    for key in ("conv", "mix"):
        assert kept[0].info(key).n_units == kept[1].info(key).n_units
        assert kept[0].info(key).n_positions == kept[1].info(key).n_positions
        for quantity in ("contribution", "activation"):
            values = [s.matrix(key, quantity=quantity, sign="concat") for s in kept]  # type: ignore[arg-type]
            torch.testing.assert_close(*values)
    close(unit_means(kept[0], "conv"), unit_means(kept[1], "conv"))


def some_edits(model: nn.Module, others: Tensor) -> list[tuple[Edit, ...]]:
    there = record_activation(model, others, "conv")
    one = torch.tensor([1.0, -2.0, 0.5]).double()
    return [
        (Ablate("conv", units=[1]),), (Preserve("conv", units=[0], replacement=(1.0, 2.0, 3.0)),),
        (Scale("conv", units=[0, 2], factor=-2.0),), (Steer("conv", direction=one, strength=0.7),),
        (Project("conv", directions=one),), (Patch("conv", source=there, units=[2]),),
        (Patch("conv", source=there[:1], direction=one),),
        (Ablate("conv", units=[0, 1], replacement=Donors(there, seed=3)),),
        (Ablate("conv", units=[0]), Scale("mix", units=[1], factor=3.0)),
        (Scale("mix", units=[1], factor=3.0),), (Ablate("mix", units=[4]),),
        (Ablate("mix", units=[0]),),
    ]  # fmt: skip


def test_edits_are_those_of_a_model_that_folds_nothing() -> None:
    """In whole passes, and of what lies after the site, where versions are stacked."""
    outputs = []
    for model in pair("frames"):
        edits = some_edits(model, inputs(seed=4))
        expected = []
        for some in edits:
            with edited(model, some):
                expected.append(run_model(model, inputs()))
        found = dict(Passes(model, edits).outputs(inputs()))
        for number, output in enumerate(expected):
            close(found[number], output)
        outputs.append(torch.stack(expected))
    close(*outputs)
    assert split_at(pair("frames")[0], inputs(), Site("conv")).stacks
    assert split_at(pair("frames")[0], inputs(), Site("mix")).stacks


def test_donors_of_other_folds_do_not_fit() -> None:
    model = pair("frames")[0]
    there = record_activation(model, inputs(n=2), "conv")
    with (
        pytest.raises(SiteError, match=r"recorded values of 2 samples, .*got 3 samples"),
        edited(model, Patch("conv", source=there, units=[0])),
    ):
        model(inputs())


@pytest.mark.parametrize("name", MODELS)
def test_maps_and_cuts_are_those_of_a_model_that_folds_nothing(name: str) -> None:
    folding, plain = pair(name)
    for site in MODELS[name][2]:
        maps = [mode_map(model, inputs(name), site, [0, 1], Logit(1)) for model in (folding, plain)]
        close(maps[0].positive, maps[1].positive)
        close(maps[0].negative, maps[1].negative)
    sites = [Site.parse(site) for site in MODELS[name][2]]
    one = inputs(name, 1)
    assert find_cuts(folding, one, sites) == find_cuts(plain, one, sites)


def test_faithfulness_and_shapes_tell_of_folds() -> None:
    tables = [
        faithfulness(contribute(model, inputs(), "conv", target=Logit(1), method=GradCAM()))
        for model in pair("frames")
    ]
    assert tables[0].round(9).equals(tables[1].round(9))
    shapes = inspect_model(pair("frames")[0], inputs()).set_index("site")["shape"]
    assert shapes["conv"] == (4, 3, 5, 4)
    assert shapes["mix"] == (5,)


def test_weights_of_the_last_layer_are_sums_over_folds() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 3, 3), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x.flatten(0, 1)).mean((-1, -2))
            return self.head(h.unflatten(0, (len(x), -1)).mean(1))

    model = Last().eval()
    torch.testing.assert_close(head_weights(model, "conv", inputs().float()), model.head.weight)


class Elsewhere(nn.Module):
    """Rows that are not in the order of the samples."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.linear, self.head = way, nn.Linear(4, 4), nn.Linear(4, 3)
        self.table = nn.Embedding(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, t = x.shape[:2]
        if self.way == "table":
            return self.head((x + self.table(torch.arange(t))).tanh().mean(1))
        if self.way == "views":
            h = self.linear(torch.cat([x[:, 0], x[:, 1]])).tanh()
            return self.head(h[:n] + h[n:])
        h = x.transpose(0, 1)
        if self.way == "time first, folded":
            return self.head(self.linear(h.flatten(0, 1)).tanh().view(t, n, 4).mean(0))
        return self.head(self.linear(h).tanh().mean(0))


@pytest.mark.parametrize("n_samples", [1, 2, 3])
@pytest.mark.parametrize("way", ["time first", "time first, folded", "views", "table"])
def test_rows_in_another_order_are_refused(way: str, n_samples: int) -> None:
    """Also where there are as many rows as samples, and where all rows are one sample's."""
    torch.manual_seed(0)
    model, x = Elsewhere(way).eval(), torch.randn(n_samples, 2 if way == "views" else 3, 4)
    site = "table" if way == "table" else "linear"
    asks: list[Callable[[], Any]] = [
        lambda: contribute(model, x, site, target=Logit(0)),
        lambda: contribute(model, x, site, target=Logit(0), method=UnitAblation()),
    ]
    if n_samples != 3 and way != "table":  # as many rows as samples: only the first of these tries
        asks += [
            lambda: record_activation(model, x, site), lambda: mode_map(model, x, site, [0]),
            lambda: split_at(model, x, Site(site)),
        ]  # fmt: skip
    for ask in asks:
        with pytest.raises(
            SiteError, match=r"(stand together|first axis) .*[Cc]hoose a site before"
        ):
            ask()


class Sentences(nn.Module):
    """Sentences of a text, [sample, sentence, token], folded; the kinds of tokens are a table's."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table

    def forward(self, inputs_embeds: Tensor, kinds: Tensor) -> Tensor:
        h = (inputs_embeds + self.table(kinds)).flatten(0, 1)
        return self.head(self.linear(h).tanh().mean(1)).unflatten(0, (len(kinds), -1)).mean(1)


def test_inputs_that_stay_do_so_when_folds_are_tried() -> None:
    """Numbers of tokens with noise on them would be none of the table."""
    torch.manual_seed(0)
    batch = {"input_ids": torch.randint(9, (2, 3, 5)), "kinds": torch.full((2, 3, 5), 8)}
    model = SeveralInputs(Sentences().double(), batch).eval()
    found = contribute(model, model.pack(batch), "model.linear", target=Logit(0))
    assert found["model.linear"].contribution.shape == (2, 3, 5, 4)
    assert found["model.linear"].cut


def test_rows_are_counted() -> None:
    records = {"a": torch.zeros(6, 2), "b": torch.zeros(3)}
    assert count_folds(records, 3, allowed=["a"]) == {"a": 2, "b": 1}
    for wrong in (torch.zeros(6, 2), torch.zeros(4), torch.zeros(0, 2), torch.tensor(1.0)):
        with pytest.raises(
            SiteError, match=r"c: expected an activation of shape \[sample, \.\.\.\]"
        ):
            count_folds({"c": wrong}, 3)
    check_order(pair("frames")[0], torch.zeros(1, 4, 2, 7, 6).double(), [Site("conv")])


def test_units_of_folds() -> None:
    values = torch.randn(2, 3, 5, 4)  # sample, fold, token, feature
    units = FoldedUnits.of(Units("features", tokens=(1, 3)))
    assert torch.equal(units.expand(values), values[:, :, 1:3])
    assert (units.count(values.shape), units.positions(values.shape)) == (4, 6)
    assert units.axes(4) == (3,)
    laid = units.broadcast(torch.arange(4.0), values.shape).expand(values.shape)
    assert torch.equal(laid[1, 2, 1], torch.arange(4.0))
    assert not laid[:, :, [0, 3, 4]].any()
    assert str(units) == "features[1:3]"


def windowed(model: nn.Module, x: Tensor, site: str, steps: int) -> Tensor:
    """Contributions of one sample at the input of a module, by a plain loop with one hook."""
    found: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        found.append(args[0].detach().requires_grad_())
        return (found[-1],)

    handle = model.get_submodule(site).register_forward_pre_hook(keep)
    total, before = torch.zeros(1, dtype=x.dtype), None
    for k in range(steps + 1):
        found.clear()
        out = model(x[None] * (k / steps))[0, 1]
        (g,) = torch.autograd.grad(out, found[0])
        if before is not None:
            total = total + (found[0].detach() - before[0]) * (g + before[1]) / 2
        before = found[0].detach(), g
    handle.remove()
    return total


def test_windows_of_a_swin_transformer_are_folds() -> None:
    import_torchvision()  # timm imports it, and needs the same cure.
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 8}
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", depths=(2, 1), num_heads=(2, 2), num_classes=3, **options
    )
    model, x = model.double().eval(), torch.randn(2, 3, 32, 32).double()
    name = "layers.0.blocks.1.attn.proj"
    batch = contribute(
        model, x, f"{name}:input@heads", method=IntegratedGradients(steps=4), target=Logit(1)
    )
    (part,) = batch.by_site
    assert part.contribution.shape == (2, 4, 16, 8)
    for sample, found in zip(x, part.contribution, strict=True):
        close(found, windowed(model, sample, name, 4))
    assert batch.reduce().by_site[0].contribution.shape == (2, 2, 2)
